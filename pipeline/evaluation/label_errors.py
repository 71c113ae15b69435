"""Labels that are likely wrong, by confident learning (Northcutt et al. 2021), from probabilities by models that never
trained on the pictures: the evaluated model for those held out, cross-validated heads for those of training."""

import warnings
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from pipeline.evaluation.metrics import Probabilities, probabilities_of, targets_of

HELD_OUT = ("valid", "test")


def label_errors(table: pd.DataFrame, classes: Sequence[str], decided: Collection[str] = ()) -> pd.DataFrame:
    """The rows of a predictions table whose label is likely an error: see `_doubted`.

    Only validation and test rows are examined: on training rows the model has learned the errors themselves.
    """
    held_out = table[table["split"].isin(HELD_OUT)]
    return _doubted(held_out, classes, probabilities_of(held_out, classes), decided)


def training_label_errors(
    manifest_table: pd.DataFrame, classes: Sequence[str], out_of_fold: Probabilities, decided: Collection[str] = ()
) -> pd.DataFrame:
    """The training rows of a manifest's table whose label is likely an error: see `_doubted`. `out_of_fold` (training
    pictures, classes) are their probabilities by models that never trained on them."""
    train = manifest_table[manifest_table["split"] == "train"].rename_axis("row").reset_index()
    return _doubted(train, classes, out_of_fold, decided)


def _doubted(
    pictures: pd.DataFrame, classes: Sequence[str], probabilities: Probabilities, decided: Collection[str]
) -> pd.DataFrame:
    """The `pictures` whose label is likely an error, the likeliest first: `row`, `path`, `split`, `label`, the
    `suggested` class with its `probability`, and `quality`, the probability of the label as it is. Without those of the
    `decided` content (hashes), whose labels a person has kept or corrected."""
    targets = targets_of(pictures, classes)
    is_suspect = targets != targets
    if len(set(targets)) > 1:
        with warnings.catch_warnings(action="ignore"):  # about classes too rare to be evaluated
            is_suspect = find_label_issues(targets, probabilities, n_jobs=1)
    found = pictures.loc[is_suspect, ["row", "path", "split", "label"]].copy()
    found["suggested"] = np.array(classes)[probabilities[is_suspect].argmax(1)]
    found["probability"] = probabilities[is_suspect].max(1)
    found["quality"] = get_label_quality_scores(targets, probabilities)[is_suspect] if len(found) else 0.0
    found = found[~pictures.loc[found.index, "hash"].isin(list(decided))]
    ranked: pd.DataFrame = found.sort_values("quality", kind="stable", ignore_index=True)
    return ranked
