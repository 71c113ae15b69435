import numpy as np
import numpy.typing as npt
import pytest

from pipeline.lr_finder import debiased_average
from pipeline.suggest import (
    FEWEST_POINTS,
    RULES,
    below_rise,
    falling_part,
    minimum,
    slide,
    steep,
    suggestions,
    usable_part,
    valley,
)

Floats = npt.NDArray[np.float64]
POINTS = 100


def clean_curve(points: int = POINTS, fall_at: float = 1e-3, explode_at: float = 1.0) -> tuple[Floats, Floats]:
    """Flat at 2, falling to 0.3 along a sigmoid about `fall_at`, then exploding about `explode_at`."""
    rates = np.geomspace(1e-6, 10.0, points)
    magnitude = np.log10(rates)
    falling = 0.3 + 1.7 / (1 + np.exp(3 * (magnitude - np.log10(fall_at))))
    return rates, falling + 0.5 * np.exp(3 * (magnitude - np.log10(explode_at)))


def measured_curve(seed: int, noise: float, points: int = POINTS) -> tuple[Floats, Floats]:
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
    at = int(np.searchsorted(rates, suggestions(rates, losses)["valley"]))
    assert losses[at] < losses[10]
    assert losses[at:].min() < losses[at]


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
    places = np.arange(90)
    assert suggestions(np.geomspace(1e-6, 1, 90), 0.3 + 0.0001 * (places - 40) ** 2)["slide"] is None


@pytest.mark.parametrize("seed", range(5))
def test_where_nothing_falls_the_rate_is_a_tenth_of_where_the_loss_begins_to_rise(seed: int) -> None:
    rates = np.geomspace(1e-6, 10.0, POINTS)
    noise = 1 + 0.02 * np.random.default_rng(seed).standard_normal(POINTS)
    flat = 0.4 * noise + 0.5 * np.exp(3 * (np.log10(rates) + 2))  # explodes about 0.01
    rate = below_rise(rates, flat)
    assert rate is not None
    assert 3e-5 < rate < 3e-4
    assert flat[rates > 10.01 * rate].min() > 1.1 * flat.min()


def test_a_loss_that_never_rises_has_no_place_below_its_rise() -> None:
    rates = np.geomspace(1e-6, 10.0, POINTS)
    assert below_rise(rates, np.linspace(1.0, 0.5, POINTS)) is None
    assert below_rise(rates[:3], np.ones(3)) is None
