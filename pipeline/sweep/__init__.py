"""Tunes a recipe: a study of many trials, each the recipe with other values, run by workers on one or more machines.

In reading order: space (which keys vary), study (storage, sampler, pruner), trials (tables and words), trial_queue
(which trials are next), trial_run (a trial as a run), worker_processes and workers (what runs them), leader (which
command leads), progress, study_figures and sweep_report (what a user reads), best (the best recipe), study_run (all of
it). The only wing that imports optuna and plotly.
"""
