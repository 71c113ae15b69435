import itertools

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR

from pipeline.recipe.fields import GROUPS
from pipeline.training.schedule import cycle_lengths, group_rates, position_in_cycle, rate_factor, thawed_rates


def factors(cycle_epochs: list[int], steps_per_epoch: int) -> list[float]:
    return [rate_factor(step, cycle_epochs, steps_per_epoch) for step in range(sum(cycle_epochs) * steps_per_epoch)]


def starts(lengths: list[int]) -> list[int]:
    return [0, *itertools.accumulate(lengths)][:-1]


def test_three_cycles_of_length_1_and_multiplier_2_are_seven_epochs() -> None:
    assert cycle_lengths(3, 1, 2) == [1, 2, 4]
    assert sum(cycle_lengths(3, 1, 2)) == 7


@pytest.mark.parametrize(
    ("cycles", "cycle_len", "cycle_mult", "lengths"),
    [
        (1, 1, 1, [1]),
        (3, 1, 1, [1, 1, 1]),
        (2, 3, 1, [3, 3]),
        (1, 4, 3, [4]),
        (4, 1, 2, [1, 2, 4, 8]),
        (3, 2, 2, [2, 4, 8]),
        (5, 1, 3, [1, 3, 9, 27, 81]),
        (3, 2, 3, [2, 6, 18]),
    ],
)
def test_each_cycle_is_the_multiplier_times_as_long_as_the_one_before(
    cycles: int, cycle_len: int, cycle_mult: int, lengths: list[int]
) -> None:
    assert cycle_lengths(cycles, cycle_len, cycle_mult) == lengths


@pytest.mark.parametrize(("multiplier", "cycles"), [(1, 12), (2, 8), (3, 6)])
@pytest.mark.parametrize(("cycle_len", "steps_per_epoch"), [(1, 1), (1, 7), (2, 5)])
def test_the_rate_is_that_of_torchs_warm_restarts_at_every_step(
    multiplier: int, cycles: int, cycle_len: int, steps_per_epoch: int
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=cycle_len * steps_per_epoch, T_mult=multiplier, eta_min=0)
    ours = factors(cycle_lengths(cycles, cycle_len, multiplier), steps_per_epoch)
    for step, factor in enumerate(ours):
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), f"step {step}"
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_the_factor_is_exactly_one_at_every_restart_and_nowhere_else(multiplier: int) -> None:
    epochs, steps_per_epoch = cycle_lengths(6, 2, multiplier), 3
    restarts = [start * steps_per_epoch for start in starts(epochs)]
    found = [step for step, factor in enumerate(factors(epochs, steps_per_epoch)) if factor == 1.0]
    assert found == restarts


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_the_factor_falls_within_a_cycle_and_is_never_zero(multiplier: int) -> None:
    epochs, steps_per_epoch = cycle_lengths(5, 2, multiplier), 4
    values = factors(epochs, steps_per_epoch)
    assert all(0 < value <= 1 for value in values)
    for start, length in zip(starts(epochs), epochs, strict=True):
        cycle = values[start * steps_per_epoch : (start + length) * steps_per_epoch]
        assert all(before > after for before, after in itertools.pairwise(cycle))


def test_the_factor_is_one_half_in_the_middle_of_a_cycle() -> None:
    assert rate_factor(5, [10], 1) == pytest.approx(0.5)
    assert rate_factor(10 + 15, [10, 30], 1) == pytest.approx(0.5)


def test_with_warm_up_the_first_cycle_climbs_from_a_25th_and_then_falls_and_later_ones_start_at_the_top() -> None:
    values = [rate_factor(step, [4, 4], 10, warm_up=0.25) for step in range(80)]
    assert values[0] == pytest.approx(1 / 25)
    assert values[10] == values[40] == 1.0
    assert all(before < after for before, after in itertools.pairwise(values[:11]))
    assert all(before > after for before, after in itertools.pairwise(values[10:40]))
    assert values[40:] == factors([4], 10)


@pytest.mark.parametrize("warm_up", [0.25, 0.4])
def test_one_cycle_with_warm_up_has_the_rates_of_torchs_one_cycle_policy(warm_up: float) -> None:
    steps = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps + 1, pct_start=(warm_up * steps + 1) / (steps + 1), div_factor=25,
        final_div_factor=1e9, cycle_momentum=False,
    )  # fmt: skip
    for step in range(steps):
        assert rate_factor(step, [4], 10, warm_up) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        scheduler.step()


def test_a_cycle_of_one_step_has_the_full_rate() -> None:
    assert factors([1, 1, 1], 1) == [1.0, 1.0, 1.0]


def test_the_fifth_restart_of_multiplier_3_begins_the_sixth_cycle() -> None:
    lengths = cycle_lengths(6, 1, 3)
    assert position_in_cycle(120, lengths) == (4, 80, 81)
    assert position_in_cycle(121, lengths) == (5, 0, 243)
    assert rate_factor(121, lengths, 1) == 1.0


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_every_step_has_the_place_that_counting_gives_it(multiplier: int) -> None:
    lengths = cycle_lengths(7, 2, multiplier)
    counted = [(cycle, within, length) for cycle, length in enumerate(lengths) for within in range(length)]
    assert [position_in_cycle(step, lengths) for step in range(sum(lengths))] == counted


def test_positions_stay_exact_where_floats_would_not() -> None:
    lengths = cycle_lengths(40, 1, 3)
    for cycle, start in enumerate(starts(lengths)):
        assert position_in_cycle(start, lengths) == (cycle, 0, 3**cycle)


@pytest.mark.parametrize("step", [7, 8, 1000])
def test_a_step_past_the_last_cycle_is_an_error_that_names_both(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is past the last cycle, which ends at 7"):
        position_in_cycle(step, [1, 2, 4])
    with pytest.raises(ValueError, match="past the last cycle"):
        rate_factor(step * 5, [1, 2, 4], 5)


def test_a_step_before_the_first_cycle_is_an_error() -> None:
    with pytest.raises(ValueError, match="step -1 is before the first cycle"):
        position_in_cycle(-1, [1, 2, 4])


def test_the_groups_run_from_early_to_head() -> None:
    assert GROUPS == ("early", "late", "head")


def test_a_single_rate_is_the_heads_and_each_group_before_it_has_less() -> None:
    rates = group_rates(0.09, 3)
    assert rates == pytest.approx({"early": 0.01, "late": 0.03, "head": 0.09})
    assert rates["head"] == 0.09


@pytest.mark.parametrize("lr", [1, 0.5])
def test_a_ratio_of_1_gives_every_group_the_same_rate(lr: float) -> None:
    assert group_rates(lr, 1) == {"early": lr, "late": lr, "head": lr}


def test_a_list_gives_the_rates_one_by_one_early_to_head() -> None:
    assert group_rates([1e-4, 1e-3, 1e-2], 10) == {"early": 1e-4, "late": 1e-3, "head": 1e-2}


@pytest.mark.parametrize("lr", [0.1, (1e-4, 1e-3, 1e-2)])
def test_the_rates_come_early_to_head(lr: float | tuple[float, ...]) -> None:
    assert tuple(group_rates(lr, 5)) == GROUPS


@pytest.mark.parametrize("lr", [[1e-3], [1e-4, 1e-3], [1e-5, 1e-4, 1e-3, 1e-2]])
def test_a_list_of_another_length_is_an_error(lr: list[float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        group_rates(lr, 3)


@pytest.mark.parametrize(("frozen", "groups"), [("none", GROUPS), ("early", ("late", "head")), ("body", ("head",))])
def test_what_is_frozen_has_no_rate_and_the_others_have_theirs(frozen: str, groups: tuple[str, ...]) -> None:
    assert thawed_rates(0.09, 3, frozen) == {group: group_rates(0.09, 3)[group] for group in groups}
