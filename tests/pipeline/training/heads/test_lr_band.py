"""The range test of many seeds at once is the range test of each."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.recipe.schema import LrFind
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.heads.lr_band import band_of, band_table, range_tests, suggested_by_seed
from pipeline.training.heads.many_heads import HeadSetting
from pipeline.training.lr_finder import Curve, range_test, suggestions
from pipeline.training.optim import AS_EVER
from tests.pipeline.stored_classes import new_head, shape, stored_batches

SEEDS = [0, 5, 2]
TESTED = HeadSetting(0.0, weight_decay=0.02, dropout=0.5, label_smoothing=0.2)


def settings_of(start_lr, end_lr, iterations):
    """Without the checks of a recipe, to explode."""
    return LrFind.model_construct(start_lr=start_lr, end_lr=end_lr, iterations=iterations)


def together(hidden, start_lr, end_lr, iterations, heads_at_once=None, train=None, options=AS_EVER):
    train, settings = train or stored_batches()[0], settings_of(start_lr, end_lr, iterations)
    return range_tests(SEEDS, shape(hidden), TESTED, train, settings, options, heads_at_once=heads_at_once)


def alone(seed, hidden, start_lr, end_lr, iterations, train=None, options=AS_EVER):
    head, optimizer = new_head(replace(TESTED, lr=end_lr, seed=seed), hidden, options)
    train = replace(train or stored_batches()[0], seed=seed)
    settings = settings_of(start_lr, end_lr, iterations)
    return range_test(head, optimizer, train, settings, "none", options, TESTED.label_smoothing)


@pytest.mark.parametrize("heads_at_once", [None, 2])
@pytest.mark.parametrize("hidden", [0, 8, 32])
def test_each_seeds_curve_is_that_of_its_range_test_alone(hidden, heads_at_once):
    test = (hidden, 1e-5, 0.3, 30)
    for seed, curve in zip(SEEDS, together(*test, heads_at_once=heads_at_once), strict=True):
        expected = alone(seed, *test)
        np.testing.assert_array_equal(curve.rates, expected.rates)
        np.testing.assert_allclose(curve.losses, expected.losses, rtol=1e-4)
        np.testing.assert_allclose(curve.smoothed, expected.smoothed, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": "cycled"},
        {"optimizer": "sgd", "momentum": "cycled"},
        {"optimizer": "sgd", "clip_norm": 0.05},
        {"accumulate": 3},
    ],
)
def test_each_seeds_curve_is_by_the_recipes_optimizer_and_weights_as_alone(options):
    train = stored_batches()[0]
    train = replace(train, weights=np.random.default_rng(1).random(len(train.targets)).astype(np.float32))
    test, how = (8, 1e-5, 0.3, 30), {"train": train, "options": TrainingOptions(**options)}
    for seed, curve, plain in zip(SEEDS, together(*test, **how), together(*test, train=train), strict=True):
        np.testing.assert_allclose(curve.losses, alone(seed, *test, **how).losses, rtol=1e-4)
        assert not np.allclose(curve.losses, plain.losses, rtol=1e-3)


@pytest.mark.parametrize("iterations", [60, 90])
def test_each_seeds_curve_ends_where_it_explodes_as_alone(iterations):
    test = (0, 1e-5, 1e4, iterations)
    curves = together(*test)
    lengths = [len(curve.rates) for curve in curves]
    assert lengths == [len(alone(seed, *test).rates) for seed in SEEDS]
    assert max(lengths) < iterations
    for curve in curves:
        lowest = np.minimum.accumulate(curve.smoothed)
        assert curve.smoothed[-1] > 4 * lowest[-1]
        assert (curve.smoothed[:-1] <= 4 * lowest[:-1]).all()


def test_a_loss_that_is_no_number_from_the_first_names_the_setting_to_lower():
    train = stored_batches()[0]
    broken = replace(train, fetch=lambda rows: train.fetch(rows) * float("nan"))
    with pytest.raises(UserError, match=r"no number at the rate 1e-05 already; lower lr_find\.start_lr"):
        together(0, 1e-5, 1.0, 20, train=broken)


def curve(smoothed):
    losses = np.array(smoothed, dtype=float)
    return Curve(np.geomspace(1e-3, 1e2, 6)[: len(losses)], losses, losses)


def test_the_band_lies_about_the_median_and_ends_where_most_have_exploded():
    curves = [curve([5, 4, 9]), curve([5, 3, 2, 9]), curve([5, 2, 1, 1, 1]), curve([5, 1, 1, 1, 1, 1])]
    band = band_of(curves)
    assert band.middle.tolist() == [5, 2, 1, 1, 1]
    assert band.low.tolist() == [5, 1, 1, 1, 1]
    assert band.high.tolist() == [5, 4, 9, np.inf, np.inf]
    assert band.rates.tolist() == np.geomspace(1e-3, 1e2, 6)[:5].tolist()
    assert band_table(band).columns.tolist() == [
        "lr", "smoothed_loss_low", "smoothed_loss_median", "smoothed_loss_high",
    ]  # fmt: skip


def test_the_band_of_one_curve_is_that_curve():
    band = band_of([curve([3, 2, 1])])
    assert band.low.tolist() == band.middle.tolist() == band.high.tolist() == [3, 2, 1]


def test_what_the_seeds_suggest_is_sorted_and_leaves_out_those_that_suggest_nothing():
    curves = together(0, 1e-5, 1e2, 60)
    found = [suggestions(one.rates, one.smoothed)["valley"] for one in curves]
    assert suggested_by_seed([*curves, curve([1, 2, 3])], "valley") == sorted(found)
