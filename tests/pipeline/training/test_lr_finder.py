import copy
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches, fetch_pixels
from pipeline.models.body import build_body
from pipeline.models.layer_groups import FixedStatistics, training_mode
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.recipe.schema import LrFind
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.fit import Phase, fit
from pipeline.training.lr_finder import (
    FEWEST_POINTS,
    KNOWN_RATE,
    RULES,
    Curve,
    below_rise,
    choose_suggestion,
    curve_table,
    debiased_average,
    falling_part,
    minimum,
    range_test,
    require_suggestion,
    slide,
    steep,
    suggestions,
    usable_part,
    valley,
)
from pipeline.training.optim import build_optimizer, set_rates, thaw
from pipeline.training.step import train_step

Floats = npt.NDArray[np.float64]
Fetch = Callable[[npt.NDArray[np.int64]], Tensor]
CPU = torch.device("cpu")
ROWS = np.arange(64)
TARGETS = ROWS % 2
CURVE_LENGTH = 100
POINTS = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) + (2 * TARGETS - 1)[:, None].astype(
    np.float32
)


def from_all_random_sources(rows: npt.NDArray[np.int64]) -> Tensor:
    """The points, after a draw from each of the shared random sources, as a careless reader might."""
    random.random()
    np.random.rand()  # noqa: NPY002
    torch.rand(1)
    return torch.from_numpy(POINTS[rows])


def toy_batches(fetch: Fetch = from_all_random_sources, seed: int = 0) -> Batches:
    return Batches(fetch, ROWS, TARGETS, 16, CPU, seed)


def toy_network(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def toy_optimizer(network: nn.Module, early: float = 0.01, head: float = 0.1) -> Optimizer:
    names = [name for name, _ in network.named_parameters()]
    return build_optimizer(network, {"early": names[:-2], "head": names[-2:]}, {"early": early, "head": head}, 0.01)


def settings_of(start_lr: float, end_lr: float, iterations: int) -> LrFind:
    """Without the checks of a recipe, to be short and to explode."""
    return LrFind.model_construct(start_lr=start_lr, end_lr=end_lr, iterations=iterations)


def in_use(network: nn.Module, optimizer: Optimizer, batches: Batches) -> None:
    """Take a few steps, so that optimizer, gradients and running statistics have something to lose."""
    training_mode(network)
    set_rates(optimizer, 0.37)
    for inputs, targets in batches.epoch(7):
        train_step(network, optimizer, inputs, targets)


def whole_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    return {
        "weights and buffers": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        "modes": {name: module.training for name, module in network.named_modules()},
        "trainable": [parameter.requires_grad for parameter in network.parameters()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert one == other, where


def is_nan_at(batch: int) -> Fetch:
    calls = itertools.count()

    def fetch(rows: npt.NDArray[np.int64]) -> Tensor:
        return from_all_random_sources(rows) * (math.nan if next(calls) == batch else 1)

    return fetch


def fails_at(batch: int) -> Fetch:
    calls = itertools.count()

    def fetch(rows: npt.NDArray[np.int64]) -> Tensor:
        if next(calls) == batch:
            raise KeyboardInterrupt
        return from_all_random_sources(rows)

    return fetch


@pytest.mark.parametrize("end_lr", [1e-2, 1e6], ids=["to the end", "to the explosion"])
def test_a_range_test_leaves_no_trace(end_lr: float) -> None:
    network, batches = toy_network(), toy_batches()
    optimizer = toy_optimizer(network)
    in_use(network, optimizer, batches)
    network[1].eval()
    before = whole_state(network, optimizer)
    range_test(network, optimizer, batches, settings_of(1e-5, end_lr, 30))
    assert_same(before, whole_state(network, optimizer))


def test_a_range_test_that_meets_a_nan_leaves_no_trace() -> None:
    network = toy_network()
    optimizer = toy_optimizer(network)
    in_use(network, optimizer, toy_batches())
    before = whole_state(network, optimizer)
    range_test(network, optimizer, toy_batches(is_nan_at(6)), settings_of(1e-5, 1, 30))
    assert_same(before, whole_state(network, optimizer))


def test_a_range_test_that_is_interrupted_leaves_no_trace() -> None:
    network = toy_network()
    optimizer = toy_optimizer(network)
    in_use(network, optimizer, toy_batches())
    before = whole_state(network, optimizer)
    # The interrupted batch has drawn nothing, so that even the shared random sources are in a known state.
    with pytest.raises(KeyboardInterrupt):
        range_test(network, optimizer, toy_batches(fails_at(6)), settings_of(1e-5, 1, 30))
    assert_same(before, whole_state(network, optimizer))


def test_a_range_test_on_a_new_network_leaves_no_trace() -> None:
    network = toy_network().eval()
    optimizer = toy_optimizer(network)
    before = whole_state(network, optimizer)
    range_test(network, optimizer, toy_batches(), settings_of(1e-5, 1, 30))
    assert_same(before, whole_state(network, optimizer))
    assert optimizer.state_dict()["state"] == {}
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_network_is_trained_during_the_test() -> None:
    network = toy_network()
    seen = []
    optimizer = toy_optimizer(network)
    optimizer.register_step_post_hook(lambda *_: seen.append(network[0].weight.detach().clone()))
    range_test(network, optimizer, toy_batches(), settings_of(1e-3, 1e-1, 10))
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(seen))


def picture_test(frozen: Frozen = "none") -> tuple[Network, Optimizer, Batches]:
    torch.manual_seed(0)
    network = Network(build_body("test_resnet", 32), 2, 8, 0.5)
    rates = {"early": 1e-3, "late": 1e-2, "head": 1e-1}
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    how = Augmentation(flip="all", rotate_degrees=10, zoom=1.1, crop=0.8, lighting=0.2, probability=0.75)
    batches = Batches(fetch_pixels(pixels, CPU), np.arange(16), TARGETS, 8, CPU, 0, how)
    return network, thaw(network, frozen, rates, 0.01), batches


@pytest.mark.parametrize("frozen", ["none", "early", "body"])
@pytest.mark.parametrize("fixed_statistics", ["none", "body"])
def test_a_range_test_on_pictures_leaves_no_trace(frozen: Frozen, fixed_statistics: FixedStatistics) -> None:
    network, optimizer, batches = picture_test(frozen)
    before = whole_state(network, optimizer)
    curve = range_test(network, optimizer, batches, settings_of(1e-5, 1e-1, 5), fixed_statistics)
    assert len(curve.rates) == 5
    assert_same(before, whole_state(network, optimizer))


def test_the_finder_computes_in_the_precision_that_training_has() -> None:
    curves = [
        range_test(*picture_test(), settings_of(1e-4, 1e-2, 8), "all", TrainingOptions(precision=precision)).losses
        for precision in ("float32", "bfloat16", "bfloat16")
    ]
    assert curves[0] == pytest.approx(curves[1], abs=0.05)
    assert curves[0].tolist() != curves[1].tolist() == curves[2].tolist()


@pytest.mark.parametrize("fixed_statistics", ["none", "body"])
def test_the_bodys_running_statistics_move_during_the_test_unless_they_are_fixed(
    fixed_statistics: FixedStatistics,
) -> None:
    network, optimizer, batches = picture_test()
    counted = []
    optimizer.register_step_post_hook(lambda *_: counted.append(int(network.body.layer1[0].bn1.num_batches_tracked)))
    range_test(network, optimizer, batches, settings_of(1e-5, 1e-1, 3), fixed_statistics)
    assert counted == ([0, 0, 0] if fixed_statistics == "body" else [1, 2, 3])


def test_training_goes_the_same_way_after_a_range_test_as_without_one() -> None:
    trained = []
    for is_tested in (False, True):
        network = toy_network()
        optimizer = toy_optimizer(network)
        in_use(network, optimizer, toy_batches())
        if is_tested:
            range_test(network, optimizer, toy_batches(), settings_of(1e-5, 1e3, 40))
        list(fit(Phase(network, optimizer, toy_batches(), replace(toy_batches(), seed=None), [2])))
        trained.append(network.state_dict())
    assert_same(*trained)


def test_the_rate_grows_by_the_same_factor_at_every_batch() -> None:
    network = toy_network()
    curve = range_test(network, toy_optimizer(network), toy_batches(), settings_of(1e-6, 1e-2, 41))
    assert curve.rates[0] == pytest.approx(1e-6)
    assert curve.rates[-1] == pytest.approx(1e-2)
    np.testing.assert_allclose(curve.rates[1:] / curve.rates[:-1], 10**0.1)
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) == 41


def test_the_groups_keep_their_ratio_and_the_fastest_has_the_curves_rate() -> None:
    network = toy_network()
    optimizer = toy_optimizer(network, early=0.004, head=0.012)
    used = []
    optimizer.register_step_pre_hook(
        lambda *_: used.append({g["layer_group"]: g["lr"] for g in optimizer.param_groups})
    )
    curve = range_test(network, optimizer, toy_batches(), settings_of(1e-5, 1e-2, 20))
    np.testing.assert_allclose([rates["head"] for rates in used], curve.rates)
    np.testing.assert_allclose([rates["early"] for rates in used], curve.rates / 3)


def test_gradients_are_scaled_down_to_the_norm_that_training_clips_them_to() -> None:
    norms = []

    def note(optimizer: Optimizer, *_: Any) -> None:
        gradients = [one.grad.flatten() for group in optimizer.param_groups for one in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    network = toy_network()
    optimizer = toy_optimizer(network)
    optimizer.register_step_pre_hook(note)
    test = toy_batches(), settings_of(1e-5, 1e-2, 20)
    range_test(network, optimizer, *test)
    assert min(norms) > 0.05
    norms.clear()
    range_test(network, optimizer, *test, options=TrainingOptions(clip_norm=0.05))
    np.testing.assert_allclose(norms, [0.05] * 20, rtol=1e-3)


def test_a_batch_goes_through_the_network_in_as_many_parts_as_in_training() -> None:
    network = toy_network()
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    options = TrainingOptions(accumulate=3)
    range_test(network, toy_optimizer(network), toy_batches(), settings_of(1e-5, 1e-2, 4), options=options)
    assert sizes == [6, 5, 5] * 4


def test_the_losses_are_those_of_train_mode_before_each_step() -> None:
    network = toy_network(dropout=0.0)
    inputs, targets = next(toy_batches().epoch(0))
    with torch.no_grad():
        expected = float(F.cross_entropy(copy.deepcopy(network).train()(inputs), targets))
    curve = range_test(network.eval(), toy_optimizer(network), toy_batches(), settings_of(1e-5, 1e-2, 10))
    assert curve.losses[0] == pytest.approx(expected, rel=1e-5)


def test_the_test_goes_on_past_the_end_of_an_epoch_in_another_order() -> None:
    seen: list[int] = []

    def fetch(rows: npt.NDArray[np.int64]) -> Tensor:
        seen.extend(rows.tolist())
        return from_all_random_sources(rows)

    network = toy_network()
    range_test(network, toy_optimizer(network), toy_batches(fetch), settings_of(1e-6, 1e-4, 8))
    assert sorted(seen[:64]) == sorted(seen[64:]) == ROWS.tolist()
    assert seen[:64] != seen[64:]


def test_it_stops_where_the_smoothed_loss_exceeds_four_times_its_lowest() -> None:
    network = toy_network()
    curve = range_test(network, toy_optimizer(network), toy_batches(), settings_of(1e-4, 1e5, 200))
    assert 10 < len(curve.rates) < 200
    lowest = np.minimum.accumulate(curve.smoothed)
    assert curve.smoothed[-1] > 4 * lowest[-1]
    assert (curve.smoothed[:-1] <= 4 * lowest[:-1]).all()


@pytest.mark.parametrize("batch", [1, 2, 6])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_it_stops_at_a_loss_that_is_no_number_and_leaves_it_out(batch: int, value: float) -> None:
    calls = itertools.count()

    def fetch(rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(POINTS[rows]) * (value if next(calls) == batch else 1)

    network = toy_network()
    curve = range_test(network, toy_optimizer(network), toy_batches(fetch), settings_of(1e-5, 1e-2, 30))
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) == batch
    assert np.isfinite(curve.losses).all()
    assert next(calls) == batch + 1


def test_a_loss_that_is_no_number_from_the_first_names_the_setting_to_lower_and_leaves_no_trace() -> None:
    network = toy_network()
    optimizer = toy_optimizer(network)
    in_use(network, optimizer, toy_batches())
    before = whole_state(network, optimizer)
    with pytest.raises(UserError, match=r"no number at the rate 1e-05 already; lower lr_find\.start_lr"):
        range_test(network, optimizer, toy_batches(is_nan_at(0)), settings_of(1e-5, 1e-2, 30))
    assert_same(before, whole_state(network, optimizer))


def test_the_same_test_gives_the_same_curve_from_any_random_state() -> None:
    network = toy_network()
    optimizer = toy_optimizer(network)
    first = range_test(network, optimizer, toy_batches(), settings_of(1e-5, 1, 30))
    torch.manual_seed(1234)
    second = range_test(network, optimizer, toy_batches(), settings_of(1e-5, 1, 30))
    assert_same(vars(first), vars(second))


def test_the_curve_of_a_problem_that_can_be_learned_falls_before_it_explodes() -> None:
    network = toy_network(dropout=0.0)
    curve = range_test(network, toy_optimizer(network), toy_batches(), settings_of(1e-5, 1e4, 100))
    lowest = int(curve.smoothed.argmin())
    assert curve.smoothed[lowest] < 0.8 * curve.smoothed[0]
    valley = suggestions(curve.rates, curve.smoothed)["valley"]
    assert curve.rates[0] < valley < curve.rates[lowest]


def test_the_debiased_average_by_hand() -> None:
    assert debiased_average([3.0]) == 3.0
    assert debiased_average([1.0, 2.0, 3.0], decay=0.5) == pytest.approx((0.25 * 1 + 0.5 * 2 + 3) / 1.75)
    assert debiased_average([7.0] * 50) == pytest.approx(7.0)


def test_the_debiased_average_is_adams_recursion() -> None:
    values = np.random.default_rng(0).random(60).tolist()
    moving = 0.0
    for count, value in enumerate(values, start=1):
        moving = 0.98 * moving + 0.02 * value
        assert debiased_average(values[:count]) == pytest.approx(moving / (1 - 0.98**count))


def test_the_smoothed_losses_are_the_debiased_averages() -> None:
    network = toy_network()
    curve = range_test(network, toy_optimizer(network), toy_batches(), settings_of(1e-5, 1e-2, 12))
    losses = curve.losses.tolist()
    assert curve.smoothed.tolist() == [debiased_average(losses[: end + 1]) for end in range(12)]


def test_the_table_has_a_row_per_batch() -> None:
    table = curve_table(Curve(np.array([1e-3, 1e-2]), np.array([2.0, 1.0]), np.array([2.0, 1.5])))
    assert table.to_dict("list") == {"lr": [1e-3, 1e-2], "loss": [2.0, 1.0], "smoothed_loss": [2.0, 1.5]}


def test_gradients_of_what_the_optimizer_leaves_out_are_as_before() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer(network[1], {"head": ["weight", "bias"]}, {"head": 1.0}, 0.0)
    rows = np.arange(8, dtype=np.int64)
    batches = Batches(lambda chosen: torch.ones(len(chosen), 4), rows, rows % 2, 4, torch.device("cpu"), seed=0)
    range_test(network, optimizer, batches, settings_of(1e-4, 1e-2, 20))
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())


def test_the_loss_of_the_curve_is_the_one_that_is_trained_on_by_the_pictures_weights() -> None:
    batches = toy_batches()
    curves = []
    for weights in (None, np.full(64, 3, dtype=np.float32), np.where(TARGETS, 50, 1).astype(np.float32)):
        network = toy_network(dropout=0.0)
        weighted = replace(batches, weights=weights)
        curves.append(range_test(network, toy_optimizer(network), weighted, settings_of(1e-6, 1e-2, 20)))
        _, targets, found = next(weighted.weighted_epoch(0))
        inputs, _ = next(weighted.epoch(0))
        network.train()
        with torch.no_grad():
            losses = nn.functional.cross_entropy(network(inputs), targets, reduction="none").numpy()
        expected = np.average(losses, weights=None if found is None else found.numpy())
        assert curves[-1].losses[0] == pytest.approx(expected, rel=1e-5)
    plain, equal, uneven = (curve.losses for curve in curves)
    np.testing.assert_allclose(equal, plain, rtol=1e-4)
    assert np.abs(uneven - plain).max() > 0.05


def clean_curve(points: int = CURVE_LENGTH, fall_at: float = 1e-3, explode_at: float = 1.0) -> tuple[Floats, Floats]:
    """Flat at 2, falling to 0.3 along a sigmoid about `fall_at`, then exploding about `explode_at`."""
    rates = np.geomspace(1e-6, 10.0, points)
    magnitude = np.log10(rates)
    falling = 0.3 + 1.7 / (1 + np.exp(3 * (magnitude - np.log10(fall_at))))
    return rates, falling + 0.5 * np.exp(3 * (magnitude - np.log10(explode_at)))


def measured_curve(seed: int, noise: float, points: int = CURVE_LENGTH) -> tuple[Floats, Floats]:
    """The clean curve as a finder would see it: noisy, smoothed, and cut where it explodes."""
    rates, losses = clean_curve(points)
    noisy = (losses * (1 + noise * np.random.default_rng(seed).standard_normal(points))).tolist()
    smoothed: list[float] = []
    for end in range(1, points + 1):
        smoothed.append(debiased_average(noisy[:end]))
        if smoothed[-1] > 4 * min(smoothed):
            break
    return rates[: len(smoothed)], np.array(smoothed)


def test_the_usable_part_leaves_out_the_first_tenth_and_the_last_five_points() -> None:
    rates, losses = clean_curve()
    usable_rates, usable_losses = usable_part(rates, losses)
    assert usable_rates.tolist() == rates[10:95].tolist()
    assert usable_losses.tolist() == losses[10:95].tolist()


@pytest.mark.parametrize(("points", "left"), [(0, 0), (1, 0), (5, 0), (9, 0), (10, 0), (11, 5), (12, 6), (20, 13)])
def test_fewer_than_five_usable_points_are_none_at_all(points: int, left: int) -> None:
    rates, losses = usable_part(np.geomspace(1e-6, 10, points), np.linspace(2, 1, points))
    assert len(rates) == len(losses) == left


def test_valley_lies_half_way_along_a_straight_fall() -> None:
    rates = np.geomspace(1e-5, 1, 60)
    falling_then_rising = np.concatenate([np.linspace(2, 1, 42), np.linspace(1.1, 9, 18)])
    # The fall is 42 points long and ends at 41: 41 − 42 + 14 + 7.
    assert valley(rates, falling_then_rising) == rates[20]


def test_valley_sees_a_fall_through_its_bumps() -> None:
    rates = np.geomspace(1e-5, 1, 12)
    bumpy = np.array([9.0, 8, 8.5, 7, 7.5, 6, 6.5, 5, 5.5, 4, 4.5, 4.2])
    # 9, 8.5, 7.5, 6.5, 5.5, 4.5, 4.2 is the longest that falls, 7 points, and ends at 11: 11 − 7 + 2 + 1.
    assert valley(rates, bumpy) == rates[7]


def test_valley_lies_in_the_fall_of_a_finders_curve() -> None:
    rates, losses = clean_curve()
    assert 1e-4 < valley(rates, losses) < 1e-2


def test_steep_is_the_middle_of_the_sigmoid() -> None:
    rates, losses = clean_curve(fall_at=1e-3)
    # One of the two points nearest to 1e-3: neighbours are a factor of 1.18 apart.
    assert steep(rates, losses) == pytest.approx(1e-3, rel=0.18)


def test_steep_measures_slopes_along_the_logarithm_of_the_rate() -> None:
    rates = np.array([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    losses = np.array([2.0, 1.99, 1.98, 1.5, 0.8, 0.79])
    # Per unit of rate the fall at 1e-6 is by far the greatest; for the same growth of the rate, the one at 1e-3 is.
    assert steep(rates, losses) == 1e-3


def test_minimum_is_a_tenth_of_the_rate_at_the_lowest_loss() -> None:
    rates, losses = clean_curve()
    assert minimum(rates, losses) == pytest.approx(rates[losses.argmin()] / 10)


def test_slide_stops_where_the_gradient_no_longer_changes() -> None:
    rates = np.geomspace(1e-6, 10, 80)
    explosion = np.concatenate([np.full(60, 0.5), 0.5 + 0.1 * np.arange(1, 21) ** 2])
    # The gradient is 0 up to the 59th point, so that the interval's right end has to come down to index 58.
    assert slide(rates, explosion) == rates[58 - 15]


def test_slide_is_past_the_fall_and_before_the_explosion() -> None:
    rates, losses = clean_curve(fall_at=1e-4, explode_at=1.0)
    rate = suggestions(rates, losses)["slide"]
    assert 1e-4 < rate < rates[losses.argmin()]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_every_rule_is_below_the_rate_of_the_lowest_loss(rule: str, noise: float, seed: int) -> None:
    rates, losses = measured_curve(seed, noise)
    usable_rates, usable_losses = usable_part(rates, losses)
    rate = suggestions(rates, losses)[rule]
    assert rate is not None
    assert rate < usable_rates[usable_losses.argmin()]


@pytest.mark.parametrize("seed", range(5))
def test_the_default_rule_suggests_a_rate_at_which_the_loss_still_falls(seed: int) -> None:
    rates, losses = measured_curve(seed, 0.05)
    index = int(np.searchsorted(rates, suggestions(rates, losses)["valley"]))
    assert losses[index] < losses[10]
    assert losses[index:].min() < losses[index]


def test_the_suggestions_come_from_the_usable_part_alone() -> None:
    rates, losses = clean_curve()
    spoilt = losses.copy()
    spoilt[:10] = np.linspace(100, -100, 10)
    spoilt[-5:] = -1000.0
    assert suggestions(rates, spoilt) == suggestions(rates, losses)


@pytest.mark.parametrize("points", [0, 1, 5, 10])
def test_too_short_a_curve_suggests_nothing(points: int) -> None:
    rates, losses = np.geomspace(1e-6, 10, points), np.linspace(2, 1, points)
    assert suggestions(rates, losses) == dict.fromkeys(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_asked_with_too_few_points_gives_none(rule: str) -> None:
    points = FEWEST_POINTS - 1
    assert RULES[rule](np.geomspace(1e-6, 1, points), np.linspace(2, 1, points)) is None


def test_a_curve_of_the_fewest_usable_points_has_every_suggestion() -> None:
    rates = np.geomspace(1e-6, 10, 11)
    found = suggestions(rates, np.linspace(2, 1, 11))
    usable = rates[1:6]
    # The fall is 5 points long and ends at 4: 4 − 5 + 1 + 0.
    assert found["valley"] == usable[0]
    assert found["minimum"] == usable[-1] / 10
    assert all(usable[0] / 10 <= rate <= usable[-1] for rate in found.values())


def test_valley_suggests_nothing_for_a_flat_curve() -> None:
    assert suggestions(np.geomspace(1e-6, 10, 50), np.full(50, 0.7))["valley"] is None


@pytest.mark.parametrize("rule", ["valley", "steep"])
def test_a_curve_that_only_rises_suggests_nothing(rule: str) -> None:
    assert suggestions(np.geomspace(1e-6, 10, 50), np.linspace(0.5, 5, 50))[rule] is None


@pytest.mark.parametrize("losses", [np.full(50, 0.7), np.linspace(0.5, 5, 50), np.linspace(5, 0.5, 50)])
@pytest.mark.parametrize("rule", RULES)
def test_no_rule_leaves_the_range_that_was_tested(rule: str, losses: Floats) -> None:
    rates = np.geomspace(1e-6, 10, 50)
    rate = suggestions(rates, losses)[rule]
    assert rate is None or rates[0] / 10 <= rate <= rates[-1]


def test_the_falling_part_ends_at_the_lowest_point() -> None:
    rates, losses = clean_curve()
    falling_rates, falling_losses = falling_part(rates, losses)
    assert falling_losses[-1] == losses.min()
    assert falling_rates.tolist() == rates[: len(falling_rates)].tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(20))
def test_even_on_a_very_noisy_curve_no_rule_reaches_the_lowest_point(rule: str, seed: int) -> None:
    rates, losses = measured_curve(seed, 0.3)
    usable_rates, usable_losses = usable_part(rates, losses)
    rate = suggestions(rates, losses)[rule]
    assert rate is None or rate < usable_rates[usable_losses.argmin()]


@pytest.mark.parametrize("losses", [np.full(50, 0.7), np.linspace(0.7, 3, 50)], ids=["flat", "rising"])
def test_a_curve_that_never_falls_suggests_nothing(losses: Floats) -> None:
    assert suggestions(np.geomspace(1e-6, 10, 50), losses) == dict.fromkeys(RULES)


def test_a_gentle_curve_gives_slide_no_rate_past_its_minimum() -> None:
    steps = np.arange(90)
    assert suggestions(np.geomspace(1e-6, 1, 90), 0.3 + 0.0001 * (steps - 40) ** 2)["slide"] is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("falls", [0.0, 0.15])
def test_of_a_trained_head_the_rate_is_a_twentieth_of_where_the_loss_has_risen_for_good(
    seed: int, falls: float
) -> None:
    rates = np.geomspace(1e-6, 10.0, CURVE_LENGTH)
    noise = 1 + 0.2 * np.random.default_rng(seed).standard_normal(CURVE_LENGTH)
    explodes = 0.5 * np.exp(3 * (np.log10(rates) + 1.8))  # about 0.016
    losses = (0.4 - falls / (1 + 1e-3 / rates)) * noise + explodes
    rate = below_rise(rates, losses)
    assert rate is not None
    assert 3e-4 < rate < 1e-3


@pytest.mark.parametrize(("rises_at", "rate"), [(1e-5, 3e-4), (1.0, 1e-3)])
def test_it_stays_within_the_bounds_that_are_known_to_help(rises_at: float, rate: float) -> None:
    rates = np.geomspace(1e-7, 10.0, CURVE_LENGTH)
    assert below_rise(rates, np.where(rates < rises_at, 0.4, 4.0)) == rate


def test_a_loss_that_never_rises_has_no_rate_below_its_rise() -> None:
    rates = np.geomspace(1e-6, 10.0, CURVE_LENGTH)
    assert below_rise(rates, np.linspace(1.0, 0.5, CURVE_LENGTH)) is None
    assert below_rise(rates[:3], np.ones(3)) is None


def test_a_curve_without_a_suggestion_is_reported_with_its_figure() -> None:
    assert require_suggestion(0.01, "valley", "figures/lr_find.png") == 0.01
    message = "never falls .*, so valley suggests nothing; look at figures/a.png, and set the next stage's lr yourself"
    with pytest.raises(UserError, match=message):
        require_suggestion(None, "valley", "figures/a.png")


REACHING = Curve(np.geomspace(1e-6, 10.0, 20), np.ones(20), np.ones(20))


@pytest.mark.parametrize(
    ("found", "chosen", "said"),
    [
        ({"valley": 0.02, "below_rise": 5e-4}, ("valley", 0.02), ""),
        ({"valley": None, "below_rise": 5e-4}, ("below_rise", 5e-4), "well below where the loss rises"),
        ({"valley": None, "below_rise": None}, ("known", KNOWN_RATE), "trained well on several sets"),
        ({"valley": None}, ("known", KNOWN_RATE), "valley suggests nothing on this curve"),
    ],
)
def test_a_curve_that_says_nothing_gets_a_rate_that_is_known_to_help(found, chosen, said, capsys) -> None:
    assert choose_suggestion(found, "valley", REACHING, "adamw") == chosen
    printed = capsys.readouterr().out
    assert said in printed if said else not printed


def test_no_rate_is_known_for_another_optimizer_or_on_a_curve_that_ends_early() -> None:
    early = Curve(np.geomspace(1e-6, 1e-3, 20), np.ones(20), np.ones(20))
    assert choose_suggestion({"valley": None}, "valley", REACHING, "sgd") == ("valley", None)
    assert choose_suggestion({"valley": None}, "valley", early, "adamw") == ("valley", None)
