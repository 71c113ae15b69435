import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from pipeline.curves import class_curves, operating_points, positive_class
from pipeline.errors import UserError

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
