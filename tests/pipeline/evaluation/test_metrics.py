import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from pipeline.evaluation.metrics import (
    accuracy_interval,
    all_metrics,
    class_curves,
    class_metrics,
    confusion,
    most_confused,
    operating_points,
    positive_class,
    probabilities_of,
    row_shares,
    split_metrics,
    targets_of,
)
from pipeline.system.errors import UserError

CLASSES = ["ant", "bee", "cow", "doe"]


def random_table(
    seed: int, labels: list[str], predicted: list[str], rows: int = 60, classes: list[str] = CLASSES
) -> pd.DataFrame:
    """Predictions with many tied probabilities; `predicted` names the classes that can be the likeliest."""
    draw = np.random.default_rng(seed)
    table = pd.DataFrame({"label": draw.choice(labels, rows)})
    for prefix in ("", "tta_"):
        scores = draw.integers(1, 5, (rows, len(classes))).astype(float)
        scores[:, [name not in predicted for name in classes]] = 0.5
        probabilities = scores / scores.sum(1, keepdims=True)
        table[f"{prefix}predicted"] = np.array(classes)[probabilities.argmax(1)]
        of_label = probabilities[np.arange(rows), targets_of(table, classes)]
        table[f"{prefix}loss"] = -np.log(of_label)
        table[[f"{prefix}probability/{name}" for name in classes]] = probabilities
    return table


MANY = [f"class {number:02d}" for number in range(12)]


TABLES = {
    "all classes": (random_table(0, CLASSES, CLASSES), CLASSES),
    "a class never predicted": (random_table(1, CLASSES, CLASSES[:3]), CLASSES),
    "a class that does not occur": (random_table(2, CLASSES[1:], CLASSES), CLASSES),
    "two classes missing on both sides": (random_table(3, CLASSES[:2], CLASSES[:2]), CLASSES),
    "one class alone": (random_table(4, CLASSES[:1], CLASSES[:1]), CLASSES),
    "nothing right": (random_table(5, CLASSES[:2], CLASSES[2:]), CLASSES),
    "one picture": (random_table(6, CLASSES, CLASSES, rows=1), CLASSES),
    "two classes": (random_table(7, CLASSES[:2], CLASSES[:2], classes=CLASSES[:2]), CLASSES[:2]),
    "many classes": (random_table(8, MANY, MANY, rows=200, classes=MANY), MANY),
}


EVERY_TABLE = pytest.mark.parametrize(("table", "classes"), TABLES.values(), ids=TABLES)


def by_hand(table: pd.DataFrame, label: str, column: str = "predicted") -> tuple[float, float, float, int]:
    is_label, is_predicted = table["label"] == label, table[column] == label
    right = int((is_label & is_predicted).sum())
    precision = right / max(int(is_predicted.sum()), 1)
    recall = right / max(int(is_label.sum()), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return precision, recall, f1, int(is_label.sum())


@EVERY_TABLE
@pytest.mark.parametrize("prefix", ["", "tta_"])
def test_a_splits_metrics_are_those_counted_by_hand(table, classes, prefix):
    column = f"{prefix}predicted"
    found = split_metrics(table, classes, prefix)
    assert list(found) == [f"{prefix}accuracy", f"{prefix}macro_f1", f"{prefix}loss"]
    assert found[f"{prefix}accuracy"] == pytest.approx((table["label"] == table[column]).mean())
    assert found[f"{prefix}macro_f1"] == pytest.approx(np.mean([by_hand(table, one, column)[2] for one in classes]))
    assert found[f"{prefix}loss"] == pytest.approx(table[f"{prefix}loss"].sum() / len(table))
    assert all(type(value) is float for value in found.values())


def by_scikit_learn(table: pd.DataFrame, classes: list[str], prefix: str) -> dict[str, float]:
    """Every metric by the call that a reader of scikit-learn's manual would make; NaN where it is not defined."""
    labels, predicted = table["label"], table[f"{prefix}predicted"]
    scores = probabilities_of(table, classes, prefix)
    one_hot = np.array([[label == one for one in classes] for label in labels])
    some = [index for index in range(len(classes)) if 0 < one_hot[:, index].sum() < len(table)]
    how = {"labels": classes, "average": "macro", "zero_division": 0}
    found = {
        "accuracy": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, **how),
        "loss": sk.log_loss(labels, scores, labels=classes),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "macro_precision": sk.precision_score(labels, predicted, **how),
        "macro_recall": sk.recall_score(labels, predicted, **how),
        "roc_auc": sk.roc_auc_score(one_hot[:, some], scores[:, some], average="macro") if some else math.nan,
        "average_precision": sk.average_precision_score(one_hot[:, some], scores[:, some]) if some else math.nan,
        "kappa": sk.cohen_kappa_score(labels, predicted, labels=classes),
    }
    if len(classes) > 2:
        k = 2 if len(classes) <= 5 else 5
        found[f"top_{k}_accuracy"] = sk.top_k_accuracy_score(labels, scores, k=k, labels=classes)
    return {f"{prefix}{name}": value for name, value in found.items() if not math.isnan(value)}


@EVERY_TABLE
@pytest.mark.parametrize("prefix", ["", "tta_"])
def test_all_metrics_are_scikit_learns_and_those_it_cannot_give_are_left_out(table, classes, prefix):
    with warnings.catch_warnings(action="error"):
        found = all_metrics(table, classes, prefix)
    with warnings.catch_warnings(action="ignore"):
        wanted = by_scikit_learn(table, classes, prefix)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert all(math.isfinite(value) for value in found.values())


def test_the_tables_hold_what_is_hard_about_them():
    assert "roc_auc" not in all_metrics(*TABLES["one class alone"])
    assert "kappa" not in all_metrics(*TABLES["one class alone"])
    assert "top_5_accuracy" in all_metrics(*TABLES["many classes"])
    assert not any(name.startswith("top_") for name in all_metrics(*TABLES["two classes"]))
    for table, classes in TABLES.values():
        scores = probabilities_of(table, classes)
        assert len(np.unique(scores)) < scores.size, "ties"


@EVERY_TABLE
def test_class_metrics_are_those_counted_by_hand_and_those_of_scikit_learn(table, classes):
    found = class_metrics(table, classes)
    assert list(found) == ["class", "precision", "recall", "f1", "roc_auc", "average_precision", "pictures"]
    report = sk.classification_report(
        table["label"], table["predicted"], labels=classes, output_dict=True, zero_division=0
    )
    for row in found.to_dict("records"):
        numbers = [row[name] for name in ("precision", "recall", "f1", "pictures")]
        assert numbers == pytest.approx(by_hand(table, row["class"]))
        assert numbers == pytest.approx(list(report[row["class"]].values()))
        is_class, scores = table["label"] == row["class"], table[f"probability/{row['class']}"]
        if is_class.nunique() == 2:
            assert row["roc_auc"] == pytest.approx(sk.roc_auc_score(is_class, scores), abs=1e-6)
            assert row["average_precision"] == pytest.approx(sk.average_precision_score(is_class, scores), abs=1e-6)
        else:
            assert math.isnan(row["roc_auc"])
            assert math.isnan(row["average_precision"])
    assert found["class"].tolist() == classes


def test_the_interval_is_that_of_resampling_with_replacement():
    right = np.random.default_rng(0).random(200) < 0.8
    shares = [np.random.default_rng(seed).choice(right, 200).mean() for seed in range(4000)]
    low, high = accuracy_interval(right, seed=0)
    assert low == pytest.approx(np.quantile(shares, 0.025), abs=0.0051)
    assert high == pytest.approx(np.quantile(shares, 0.975), abs=0.0051)
    assert low < right.mean() < high
    assert accuracy_interval(right, seed=0) == (low, high)


def test_more_pictures_make_the_interval_narrower():
    widths = [np.ptp(accuracy_interval(np.arange(count) % 4 > 0, seed=0)) for count in (40, 400, 4000)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize("count", [1, 10, 300])
def test_where_all_or_none_are_right_the_interval_still_has_a_width(count):
    low, high = accuracy_interval(np.ones(count, dtype=bool), seed=0)
    assert (1 - low, high) == pytest.approx((1 - 0.025 ** (1 / count), 1.0))
    assert accuracy_interval(np.zeros(count, dtype=bool), seed=0) == pytest.approx((0.0, 1 - low))


def test_the_confusions_rows_are_true_labels_and_its_columns_predicted_ones():
    table = pd.DataFrame({"label": ["ant", "ant", "ant", "bee"], "predicted": ["bee", "bee", "ant", "bee"]})
    found = confusion(table, ["ant", "bee"])
    assert found.loc["ant", "bee"] == 2
    assert found.loc["bee", "ant"] == 0
    assert found.loc["ant", "ant"] == 1
    assert found.loc["bee", "bee"] == 1


@EVERY_TABLE
def test_the_confusion_counts_every_picture_once_and_its_shares_are_scikit_learns(table, classes):
    found = confusion(table, classes)
    assert found.index.tolist() == found.columns.tolist() == classes
    assert found.to_numpy().sum() == len(table)
    assert found.sum(axis=1).tolist() == [(table["label"] == one).sum() for one in classes]
    assert found.sum(axis=0).tolist() == [(table["predicted"] == one).sum() for one in classes]
    with warnings.catch_warnings(action="ignore"):
        shares = sk.confusion_matrix(table["label"], table["predicted"], labels=classes, normalize="true")
    np.testing.assert_allclose(row_shares(found).fillna(0), shares, atol=1e-6)


def test_a_class_that_does_not_occur_has_no_shares():
    assert row_shares(confusion(*TABLES["a class that does not occur"])).loc["ant"].isna().all()


def test_the_most_confused_pairs_come_first_and_what_is_right_is_none_of_them():
    counts = pd.DataFrame([[9, 2, 0], [5, 1, 0], [2, 0, 0]], ["ant", "bee", "cow"], ["ant", "bee", "cow"])
    found = most_confused(counts)
    pairs = [("bee", "ant", 5, 5 / 6), ("cow", "ant", 2, 1.0), ("ant", "bee", 2, 2 / 11)]
    assert list(found.itertuples(index=False, name=None)) == pairs
    assert most_confused(pd.DataFrame(np.eye(2, dtype=int), ["a", "b"], ["a", "b"])).empty


COUNTS = pd.Series({"cat": 30, "dog": 12})


def test_the_positive_class_is_the_one_asked_for_or_the_rarer_of_two():
    assert positive_class("cat", COUNTS) == "cat"
    assert positive_class("", COUNTS) == "dog"
    assert positive_class("", pd.Series({"cat": 3, "dog": 1, "hen": 2})) is None
    assert positive_class("hen", pd.Series({"cat": 3, "dog": 1, "hen": 2})) == "hen"


def test_a_positive_class_that_is_none_is_told_with_those_to_choose_from():
    with pytest.raises(UserError, match=r"evaluate\.positive_class is cow, which is no class .* choose from cat, dog"):
        positive_class("cow", COUNTS)


def test_the_curves_hold_scikit_learns_areas_with_ties_too():
    draw = np.random.default_rng(0)
    targets, scores = draw.integers(0, 3, 80), draw.integers(1, 4, (80, 3)).astype(float)
    probabilities = scores / scores.sum(1, keepdims=True)
    curves = class_curves(targets, probabilities, ["a", "b", "c"])
    assert [one.label for one in curves] == ["a", "b", "c"]
    for index, one in enumerate(curves):
        is_class = targets == index
        assert one.roc_auc == pytest.approx(roc_auc_score(is_class, probabilities[:, index]), abs=1e-6)
        area = np.trapezoid(one.true_positive_rates, one.false_positive_rates)
        assert area == pytest.approx(one.roc_auc, abs=1e-6)
        wanted = average_precision_score(is_class, probabilities[:, index])
        assert one.average_precision == pytest.approx(wanted, abs=1e-6)
        assert one.share == is_class.mean()


def test_a_class_that_does_not_occur_or_is_alone_has_no_curve():
    probabilities = np.full((5, 3), 1 / 3)
    assert [one.label for one in class_curves(np.array([0, 0, 1, 1, 0]), probabilities, list("abc"))] == ["a", "b"]
    assert class_curves(np.zeros(5, dtype=int), probabilities, list("abc")) == []


def test_each_operating_point_is_what_flagging_from_its_threshold_up_gives():
    draw = np.random.default_rng(1)
    is_positive, probabilities = draw.random(100) < 0.3, draw.integers(0, 21, 100) / 20
    points = operating_points(is_positive, probabilities)
    assert points["threshold"].tolist() == pytest.approx(np.arange(0.05, 1, 0.05).tolist())
    for threshold, precision, recall, flagged in points.itertuples(index=False, name=None):
        chosen = probabilities >= threshold
        assert precision == pytest.approx(precision_score(is_positive, chosen), abs=1e-6)
        assert recall == pytest.approx(recall_score(is_positive, chosen), abs=1e-6)
        assert flagged == pytest.approx(chosen.mean())
    assert points["flagged"].is_monotonic_decreasing


def test_where_nothing_is_flagged_or_positive_there_is_no_precision_or_recall():
    points = operating_points(np.zeros(4, dtype=bool), np.full(4, 0.5))
    assert points["recall"].isna().all()
    assert math.isnan(points["precision"].iloc[-1])
    assert points["flagged"].tolist() == [1.0] * 10 + [0.0] * 9
