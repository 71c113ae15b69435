"""Metrics of a predictions table, computed by scikit-learn.

A metric that is not defined (such as the ROC-AUC of a class that does not occur) is not logged, and is NaN in tables.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)

from pipeline.recipe.mistakes import check_positive_class

Probabilities = npt.NDArray[np.float64]
RESAMPLES = 10_000
INTERVAL = 0.95
THRESHOLDS = np.arange(1, 20) / 20
POINT_COLUMNS = ("threshold", "precision", "recall", "flagged")


def probabilities_of(table: pd.DataFrame, classes: Sequence[str], prefix: str = "") -> Probabilities:
    """The class probabilities (pictures, classes) in a predictions table; with `prefix` "tta_", those with TTA."""
    return table[[f"{prefix}probability/{label}" for label in classes]].to_numpy(dtype=np.float64)


def targets_of(table: pd.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The class of each picture, as its index in `classes`."""
    return pd.Categorical(table["label"], list(classes)).codes.astype(np.int64)


def split_metrics(table: pd.DataFrame, classes: Sequence[str], prefix: str = "") -> dict[str, float]:
    """`accuracy`, `macro_f1` and `loss` of the rows of `table`; with `prefix` "tta_", those of its TTA columns.

    A class that neither occurs nor is predicted counts as an F1 of 0.
    """
    labels, predicted = table["label"], table[f"{prefix}predicted"]
    return {
        f"{prefix}accuracy": float(accuracy_score(labels, predicted)),
        f"{prefix}macro_f1": float(f1_score(labels, predicted, labels=list(classes), average="macro", zero_division=0)),
        f"{prefix}loss": float(table[f"{prefix}loss"].mean()),
    }


def all_metrics(table: pd.DataFrame, classes: Sequence[str], prefix: str = "") -> dict[str, float]:
    """`split_metrics`, and `balanced_accuracy`, `macro_precision`, `macro_recall`, `roc_auc` and `average_precision`
    (one class against the rest, the mean over the classes for which they are defined), `kappa` (Cohen's) and
    `top_<k>_accuracy` (k is 5, with three to five classes 2)."""
    labels, predicted = table["label"], table[f"{prefix}predicted"]
    by_class = class_metrics(table, classes, prefix)
    with _undefined_is_nan():
        further = {
            "balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "macro_precision": by_class["precision"].mean(),
            "macro_recall": by_class["recall"].mean(),
            "roc_auc": by_class["roc_auc"].mean(),
            "average_precision": by_class["average_precision"].mean(),
            "kappa": cohen_kappa_score(labels, predicted, labels=list(classes)),
        }
    if len(classes) > 2:
        k = 5 if len(classes) > 5 else 2
        scores, every = probabilities_of(table, classes, prefix), range(len(classes))
        further[f"top_{k}_accuracy"] = top_k_accuracy_score(targets_of(table, classes), scores, k=k, labels=every)
    defined = {f"{prefix}{name}": float(value) for name, value in further.items() if math.isfinite(value)}
    return split_metrics(table, classes, prefix) | defined


def class_metrics(table: pd.DataFrame, classes: Sequence[str], prefix: str = "") -> pd.DataFrame:
    """A row per class: `class`, `precision`, `recall` and `f1` (0 without a case), `roc_auc` and `average_precision`
    against all other classes (NaN where all pictures, or none, are of the class), and `pictures`."""
    precision, recall, f1, support = precision_recall_fscore_support(
        table["label"], table[f"{prefix}predicted"], labels=list(classes), zero_division=0
    )
    is_class = targets_of(table, classes)[:, None] == np.arange(len(classes))
    scores = probabilities_of(table, classes, prefix)
    has_both = is_class.any(0) & ~is_class.all(0)

    def against_rest(score: object) -> list[float]:
        return [
            float(score(is_class[:, index], scores[:, index])) if both else math.nan  # type: ignore[operator]
            for index, both in enumerate(has_both)
        ]

    return pd.DataFrame(
        {
            "class": list(classes),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "roc_auc": against_rest(roc_auc_score),
            "average_precision": against_rest(average_precision_score),
            "pictures": support,
        }
    )


def accuracy_interval(right: npt.NDArray[np.bool_], seed: int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the share of `right`.

    The number right in a resample with replacement is binomial, so that is drawn in place of the resamples. If all
    or none are right every resample is alike, and the bound that differs is the exact binomial one (Clopper-Pearson).
    """
    count, share = len(right), float(right.mean())
    tail = (1 - INTERVAL) / 2
    if share in (0.0, 1.0):
        exact = tail ** (1 / count)
        return (exact, 1.0) if share else (0.0, 1 - exact)
    shares = np.random.default_rng(seed).binomial(count, share, RESAMPLES) / count
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Counts, with true labels as rows and predicted ones as columns."""
    counts = confusion_matrix(table["label"], table["predicted"], labels=list(classes))
    return pd.DataFrame(counts, index=list(classes), columns=list(classes))


def row_shares(counts: pd.DataFrame) -> pd.DataFrame:
    """A confusion matrix with each row divided by its sum; a class that does not occur has a row of NaN."""
    return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def most_confused(counts: pd.DataFrame) -> pd.DataFrame:
    """The pairs of a confusion matrix off its diagonal, most frequent first: `true`, `predicted`, `pictures`, `share`
    of the true class."""
    numbers = counts.to_numpy()
    true, predicted = np.nonzero(numbers * (1 - np.eye(len(counts), dtype=int)))
    pairs = pd.DataFrame(
        {
            "true": counts.index.to_numpy()[true],
            "predicted": counts.columns.to_numpy()[predicted],
            "pictures": numbers[true, predicted],
            "share": row_shares(counts).to_numpy()[true, predicted],
        }
    )
    return pairs.sort_values(["pictures", "share"], ascending=False, kind="stable", ignore_index=True)


@contextmanager
def _undefined_is_nan() -> Iterator[None]:
    """Without warnings about undefined metrics, which are NaN, or about predicted classes that do not occur."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", message="A single label was found")
        yield


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
    check_positive_class(given, list(training_counts.index))
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
    return pd.DataFrame(rows, columns=list(POINT_COLUMNS))
