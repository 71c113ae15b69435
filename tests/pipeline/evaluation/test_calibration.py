import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.calibration import calibration_curve

from pipeline.evaluation.calibration import (
    apply_temperature,
    choose_temperature,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def drawn(count: int, classes: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and targets drawn from them after their logits were divided by `sharpness`."""
    draw = np.random.default_rng(seed)
    logits = 2 * draw.normal(size=(count, classes))
    true = torch.tensor(logits / sharpness).softmax(1).numpy()
    targets = np.array([draw.choice(classes, p=row) for row in true])
    return torch.tensor(logits).softmax(1).numpy(), targets


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_targets_were_drawn_with_is_found(classes, sharpness):
    probabilities, targets = drawn(6000, classes, sharpness)
    assert fit_temperature(probabilities, targets) == pytest.approx(sharpness, rel=0.12)


def test_no_temperature_near_the_one_found_has_a_lower_cross_entropy():
    probabilities, targets = drawn(300, 4, 2.0)
    found = fit_temperature(probabilities, targets)

    def loss(temperature: float) -> float:
        return F.nll_loss(torch.tensor(apply_temperature(probabilities, temperature)).log(), torch.tensor(targets))

    assert all(loss(found) <= loss(found * factor) + 1e-9 for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


def test_a_temperature_scales_the_logits_and_keeps_their_order():
    logits = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = apply_temperature(logits.softmax(1).numpy(), 1.7)
    np.testing.assert_allclose(found, (logits / 1.7).softmax(1).numpy(), atol=1e-12)
    np.testing.assert_array_equal(found.argsort(1), logits.numpy().argsort(1))
    np.testing.assert_allclose(apply_temperature(found, 1 / 1.7), logits.softmax(1).numpy(), atol=1e-12)


@pytest.mark.parametrize(("targets", "wanted"), [([0, 0, 0], 0.1), ([1, 1, 1], 10.0), ([], 1.0)])
def test_where_all_are_right_or_wrong_or_none_is_there_the_temperature_stays_within_bounds(targets, wanted):
    probabilities = np.tile([0.8, 0.2], (len(targets), 1)).reshape(-1, 2)
    assert fit_temperature(probabilities, np.array(targets, dtype=np.int64)) == pytest.approx(wanted)


def test_probabilities_of_zero_are_no_trouble():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    temperature = fit_temperature(probabilities, np.array([0, 1, 1]))
    assert np.isfinite(apply_temperature(probabilities, temperature)).all()
    assert 1 < temperature <= 10


def test_the_reliability_bins_are_scikit_learns():
    probabilities, targets = drawn(500, 3, 2.0)
    bins = reliability(probabilities, targets)
    right, confidence = calibration_curve(probabilities.argmax(1) == targets, probabilities.max(1), n_bins=15)
    there = bins[bins["pictures"] > 0]
    np.testing.assert_allclose(there["accuracy"], right, atol=1e-6)
    np.testing.assert_allclose(there["confidence"], confidence, atol=1e-6)
    assert len(bins) == 15
    assert bins["pictures"].sum() == 500
    assert bins.loc[bins["pictures"] == 0, ["accuracy", "confidence"]].isna().all().all()


def test_the_calibration_error_is_the_mean_distance_weighted_by_pictures():
    bins = pd.DataFrame({"accuracy": [0.5, np.nan, 1.0], "confidence": [0.7, np.nan, 0.9], "pictures": [3, 0, 1]})
    assert expected_calibration_error(bins) == pytest.approx((3 * 0.2 + 1 * 0.1) / 4)


def test_scaling_mends_a_model_that_is_too_sure():
    probabilities, targets = drawn(4000, 4, 3.0)
    held_out, wanted = drawn(4000, 4, 3.0, seed=1)
    calibrated = apply_temperature(held_out, fit_temperature(probabilities, targets))
    before = expected_calibration_error(reliability(held_out, wanted))
    after = expected_calibration_error(reliability(calibrated, wanted))
    assert before > 0.15
    assert after < 0.05


def test_a_confidence_of_one_falls_into_the_last_bin():
    assert reliability(np.array([[1.0, 0.0]]), np.array([0]))["pictures"].tolist() == [0] * 14 + [1]


def test_a_bin_holds_its_upper_edge_and_not_its_lower_one():
    bins = reliability(np.array([[0.8, 0.2]]), np.array([0]))
    assert bins.loc[bins["pictures"] == 1, ["low", "high"]].to_numpy() == pytest.approx(np.array([[11 / 15, 0.8]]))


def test_on_many_pictures_the_fitted_temperature_is_chosen():
    probabilities, targets = drawn(400, 3, 3.0)
    assert choose_temperature(probabilities, targets) == (fit_temperature(probabilities, targets), "")


@pytest.mark.parametrize("wrong", [0, 9, 31])
def test_too_few_wrong_or_right_answers_choose_none(wrong):
    probabilities = np.tile([0.8, 0.2], (40, 1))
    targets = np.repeat([1, 0], [wrong, 40 - wrong])
    temperature, why = choose_temperature(probabilities, targets)
    assert temperature == 1.0
    assert f"of 40 validation pictures {wrong} are answered wrong, and a temperature takes 10 wrong and 10 right" in why


def test_without_pictures_none_is_chosen():
    temperature, why = choose_temperature(np.empty((0, 2)), np.empty(0, np.int64))
    assert temperature == 1.0
    assert "of 0 validation pictures" in why


def test_a_temperature_that_is_no_sure_gain_on_held_out_pictures_is_not_chosen():
    probabilities, targets = drawn(100, 2, 1.0)
    assert fit_temperature(probabilities, targets) != pytest.approx(1.0, abs=0.01)
    temperature, why = choose_temperature(probabilities, targets)
    assert temperature == 1.0
    assert "100 validation pictures" in why
    assert "which is no sure gain" in why


@pytest.mark.parametrize("sharpness", [0.7, 1.0, 1.5])
def test_what_is_chosen_on_few_pictures_hardly_ever_makes_others_worse(sharpness):
    held_out, wanted = drawn(4000, 2, sharpness, seed=99)

    def loss(temperature: float) -> float:
        return float(F.nll_loss(torch.tensor(apply_temperature(held_out, temperature)).log(), torch.tensor(wanted)))

    fits = [drawn(30, 2, sharpness, seed=seed) for seed in range(20)]
    worse = [loss(choose_temperature(*fit)[0]) > loss(1.0) + 0.005 for fit in fits]
    assert sum(worse) <= 2
    assert sharpness != 1.0 or sum(loss(fit_temperature(*fit)) > loss(1.0) + 0.005 for fit in fits) > 10
