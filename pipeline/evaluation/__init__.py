"""Evaluates a network: numbers only, nothing is drawn here.

In reading order: predict (probabilities of every picture), metrics and calibration (what is computed from them),
predictions (one table, and all that is read from it), label_errors, near_duplicates, neighbours, embedding and
grad_cam (looking at pictures), diagnosis (verdicts and advice), evaluation (all of it for one network), run_comparison
(evaluated runs side by side), folder_predictions (a served model over a folder).
"""
