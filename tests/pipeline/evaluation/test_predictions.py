from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.calibration import apply_temperature, reliability
from pipeline.evaluation.metrics import class_curves, class_metrics, confusion, most_confused, operating_points
from pipeline.evaluation.predict import predictions_table
from pipeline.evaluation.predictions import Predictions

CLASSES = ["cat", "dog", "hen"]
SPLITS = np.repeat(["train", "valid", "test"], [20, 10, 30])


@pytest.fixture
def predictions() -> Predictions:
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"path": "a.png", "hash": "a", "split": SPLITS, "label": draw.choice(CLASSES, len(SPLITS))})
    probabilities = draw.dirichlet(np.ones(3), len(SPLITS))
    table = predictions_table(rows, CLASSES, probabilities, probabilities)
    return Predictions("test", CLASSES, table, temperature=2.0, positive="dog")


def test_every_table_is_of_the_split_evaluated(predictions):
    table = predictions.table[predictions.table["split"] == "test"]
    probabilities = table[[f"probability/{label}" for label in CLASSES]].to_numpy()
    targets = table["label"].map(CLASSES.index).to_numpy()
    pd.testing.assert_frame_equal(predictions.evaluated, table)
    np.testing.assert_array_equal(predictions.targets, targets)
    np.testing.assert_array_equal(predictions.probabilities, probabilities)
    pd.testing.assert_frame_equal(predictions.by_class, class_metrics(table, CLASSES))
    pd.testing.assert_frame_equal(predictions.confusion, confusion(table, CLASSES))
    pd.testing.assert_frame_equal(predictions.confused_pairs, most_confused(confusion(table, CLASSES)))
    pd.testing.assert_frame_equal(predictions.reliability, reliability(probabilities, targets))
    areas = [one.roc_auc for one in class_curves(targets, probabilities, CLASSES)]
    assert [one.roc_auc for one in predictions.class_curves] == areas


def test_calibrated_tables_are_after_temperature_scaling(predictions):
    calibrated = apply_temperature(predictions.probabilities, 2.0)
    assert abs(calibrated - predictions.probabilities).max() > 0.05
    np.testing.assert_array_equal(predictions.calibrated, calibrated)
    pd.testing.assert_frame_equal(predictions.calibrated_reliability, reliability(calibrated, predictions.targets))
    is_dog = (predictions.evaluated["label"] == "dog").to_numpy()
    pd.testing.assert_frame_equal(predictions.operating_points, operating_points(is_dog, calibrated[:, 1]))


def test_without_a_positive_class_there_are_no_operating_points(predictions):
    points = replace(predictions, positive=None).operating_points
    assert points.empty
    assert list(points) == list(predictions.operating_points)


@pytest.mark.parametrize(
    "name",
    ["evaluated", "probabilities", "calibrated", "by_class", "confusion", "confused_pairs", "reliability",
     "calibrated_reliability", "class_curves", "operating_points"],
)  # fmt: skip
def test_every_table_is_computed_once(predictions, name):
    assert getattr(predictions, name) is getattr(predictions, name)
