"""What makes a stage's run: what it depends on, whether a finished run is reused, and what it logs.

In reading order: `stage` (what a stage is), `fingerprint` (what its result depends on), `upstream` (what earlier runs
give), `recipe_check` (what a recipe asks of the machine and the backbone), `runner` (runs or reuses a stage),
`recipe_pictures` (listed and split), `pixels` (those among a run's files), `train` (training that logs), `served_code`
(the code that a model brings), `publish` (a model that is logged and registered), `best_stage` (whose network is
evaluated), `summary` (the end of a recipe), `evaluated_runs` (runs to be compared).
"""
