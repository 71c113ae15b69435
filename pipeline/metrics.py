"""Figures read from a predictions table, computed by scikit-learn."""

from collections.abc import Sequence

import pandas as pd
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support


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


def class_metrics(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """A row per class: `class`, `precision`, `recall`, `f1` and `pictures`; a figure without a case is 0."""
    precision, recall, f1, support = precision_recall_fscore_support(
        table["label"], table["predicted"], labels=list(classes), zero_division=0
    )
    return pd.DataFrame(
        {"class": list(classes), "precision": precision, "recall": recall, "f1": f1, "pictures": support}
    )


def confusion(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Counts, with true labels as rows and predicted ones as columns."""
    counts = confusion_matrix(table["label"], table["predicted"], labels=list(classes))
    return pd.DataFrame(counts, index=list(classes), columns=list(classes))
