"""Labels that are likely wrong, by confident learning (Northcutt et al. 2021) on pictures that were held out."""

import warnings
from collections.abc import Sequence

import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from pipeline.evaluation.metrics import probabilities_of, targets_of

HELD_OUT = ("valid", "test")


def label_errors(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """The rows of a predictions table whose label is likely an error, the likeliest first: `row`, `path`, `split`,
    `label`, the `suggested` class with its `probability`, and `quality`, the probability of the label as it is.

    Only validation and test rows are examined: on training rows the model has learned the errors themselves.
    """
    held_out = table[table["split"].isin(HELD_OUT)]
    targets, probabilities = targets_of(held_out, classes), probabilities_of(held_out, classes)
    is_suspect = targets != targets
    if len(set(targets)) > 1:
        with warnings.catch_warnings(action="ignore"):  # about classes too rare to be evaluated
            is_suspect = find_label_issues(targets, probabilities, n_jobs=1)
    found: pd.DataFrame = held_out.loc[is_suspect, ["row", "path", "split", "label"]].copy()
    found["suggested"] = held_out.loc[is_suspect, "predicted"]
    found["probability"] = held_out.loc[is_suspect, "confidence"]
    found["quality"] = get_label_quality_scores(targets, probabilities)[is_suspect] if len(found) else 0.0
    ranked: pd.DataFrame = found.sort_values("quality", kind="stable", ignore_index=True)
    return ranked
