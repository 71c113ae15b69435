import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report

from pipeline.metrics import class_metrics, confusion, split_metrics

CLASSES = ["ant", "bee", "cow", "doe"]


def random_table(seed: int, labels: list[str], predicted: list[str], rows: int = 60) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    losses = draw.choice([0.1, 0.5, 2.0], rows)  # many ties
    return pd.DataFrame(
        {
            "label": draw.choice(labels, rows),
            "predicted": draw.choice(predicted, rows),
            "loss": losses,
            "tta_predicted": draw.choice(predicted, rows),
            "tta_loss": losses / 2,
        }
    )


TABLES = {
    "all classes": random_table(0, CLASSES, CLASSES),
    "a class never predicted": random_table(1, CLASSES, CLASSES[:3]),
    "a class that does not occur": random_table(2, CLASSES[1:], CLASSES),
    "two classes missing on both sides": random_table(3, CLASSES[:2], CLASSES[:2]),
    "one class alone": random_table(4, CLASSES[:1], CLASSES[:1]),
    "nothing right": random_table(5, CLASSES[:2], CLASSES[2:]),
    "one picture": random_table(6, CLASSES, CLASSES, rows=1),
}


def by_hand(table: pd.DataFrame, label: str, column: str = "predicted") -> tuple[float, float, float, int]:
    is_label, is_predicted = table["label"] == label, table[column] == label
    right = int((is_label & is_predicted).sum())
    precision = right / max(int(is_predicted.sum()), 1)
    recall = right / max(int(is_label.sum()), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return precision, recall, f1, int(is_label.sum())


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("prefix", ["", "tta_"])
def test_a_splits_metrics_are_those_counted_by_hand(table, prefix):
    column = f"{prefix}predicted"
    found = split_metrics(table, CLASSES, prefix)
    assert list(found) == [f"{prefix}accuracy", f"{prefix}macro_f1", f"{prefix}loss"]
    assert found[f"{prefix}accuracy"] == pytest.approx((table["label"] == table[column]).mean())
    assert found[f"{prefix}macro_f1"] == pytest.approx(np.mean([by_hand(table, one, column)[2] for one in CLASSES]))
    assert found[f"{prefix}loss"] == pytest.approx(table[f"{prefix}loss"].sum() / len(table))
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_class_metrics_are_those_counted_by_hand_and_those_of_scikit_learn(table):
    found = class_metrics(table, CLASSES)
    assert list(found) == ["class", "precision", "recall", "f1", "pictures"]
    report = classification_report(
        table["label"], table["predicted"], labels=CLASSES, output_dict=True, zero_division=0
    )
    for row in found.to_dict("records"):
        numbers = [row[name] for name in ("precision", "recall", "f1", "pictures")]
        assert numbers == pytest.approx(by_hand(table, row["class"]))
        assert numbers == pytest.approx(list(report[row["class"]].values()))
    assert found["class"].tolist() == CLASSES


def test_the_confusions_rows_are_true_labels_and_its_columns_predicted_ones():
    table = pd.DataFrame({"label": ["ant", "ant", "ant", "bee"], "predicted": ["bee", "bee", "ant", "bee"]})
    found = confusion(table, ["ant", "bee"])
    assert found.loc["ant", "bee"] == 2
    assert found.loc["bee", "ant"] == 0
    assert found.loc["ant", "ant"] == 1
    assert found.loc["bee", "bee"] == 1


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_confusion_counts_every_picture_once(table):
    found = confusion(table, CLASSES)
    assert found.index.tolist() == found.columns.tolist() == CLASSES
    assert found.to_numpy().sum() == len(table)
    assert found.sum(axis=1).tolist() == [(table["label"] == one).sum() for one in CLASSES]
    assert found.sum(axis=0).tolist() == [(table["predicted"] == one).sum() for one in CLASSES]
