"""One class against the rest at every threshold: ROC and precision-recall curves, and operating points to choose."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from pipeline.errors import UserError

THRESHOLDS = np.arange(1, 20) / 20


@dataclass(frozen=True)
class ClassCurves:
    """The curves of one class: false and true positive rates, recalls and precisions, and the areas below."""

    label: str
    false_positive_rates: npt.NDArray[np.float64]
    true_positive_rates: npt.NDArray[np.float64]
    recalls: npt.NDArray[np.float64]
    precisions: npt.NDArray[np.float64]
    roc_auc: float
    average_precision: float
    share: float


def class_curves(
    targets: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], classes: Sequence[str]
) -> list[ClassCurves]:
    """The curves of each class, from `probabilities` (pictures, classes); a class that none, or all, of the pictures
    are of has none."""
    found = []
    for index, label in enumerate(classes):
        is_class, scores = targets == index, probabilities[:, index]
        if is_class.any() and not is_class.all():
            false_positive_rates, true_positive_rates, _ = roc_curve(is_class, scores)
            precisions, recalls, _ = precision_recall_curve(is_class, scores)
            areas = float(roc_auc_score(is_class, scores)), float(average_precision_score(is_class, scores))
            share = float(is_class.mean())
            found.append(
                ClassCurves(label, false_positive_rates, true_positive_rates, recalls, precisions, *areas, share)
            )
    return found


def positive_class(given: str, training_counts: pd.Series) -> str | None:
    """The class that operating points are listed for: the one `given`, else the rarer of two, else none.

    `training_counts` holds the number of training pictures by class. UserError for a class that is not there.
    """
    if given and given not in training_counts.index:
        some = ", ".join(map(str, training_counts.index[:10]))
        raise UserError(f"evaluate.positive_class is {given}, which is no class of these pictures; choose from {some}.")
    return given or (str(training_counts.idxmin()) if len(training_counts) == 2 else None)


def operating_points(is_positive: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.float64]) -> pd.DataFrame:
    """For each `threshold` from 0.05 to 0.95 on the positive class's probability: `precision` (NaN where nothing is
    flagged), `recall` (NaN where nothing is positive) and the share of pictures `flagged`."""
    rows = []
    for threshold in THRESHOLDS:
        flagged = probabilities >= threshold
        precision, recall, _, _ = precision_recall_fscore_support(
            is_positive, flagged, average="binary", zero_division=np.nan
        )
        rows.append((float(threshold), float(precision), float(recall), float(flagged.mean())))
    return pd.DataFrame(rows, columns=["threshold", "precision", "recall", "flagged"])
