"""Learning rates as pure functions of the step: cosine annealing with warm restarts (SGDR), and warm-up.

Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5 with a minimum
rate of 0; the words `cycle_len` and `cycle_mult` are fast.ai's.
"""

import math
from collections.abc import Sequence

from pipeline.recipe.fields import FROZEN_GROUPS, GROUPS

WARM_UP_START = 1 / 25  # of the top rate, as in fastai


def cycle_lengths(cycles: int, cycle_len: int, cycle_mult: int) -> list[int]:
    """Epochs of each cycle: every cycle is `cycle_mult` times as long as the one before it.

    `cycle_lengths(3, 1, 2)` is `[1, 2, 4]`: seven epochs.
    """
    lengths = []
    length = cycle_len
    for _ in range(cycles):
        lengths.append(length)
        length *= cycle_mult
    return lengths


def position_in_cycle(step: int, lengths: list[int]) -> tuple[int, int, int]:
    """(Index of the cycle, step within it, length of it) for `step`, all 0-based.

    `lengths` are the cycles' lengths in the same unit as `step`. They are added up as integers: a closed form with
    logarithms picks the wrong cycle at some restarts. Raises ValueError past the last cycle.
    """
    if step < 0:
        raise ValueError(f"step {step} is before the first cycle")
    start = 0
    for cycle, length in enumerate(lengths):
        if step < start + length:
            return cycle, step - start, length
        start += length
    raise ValueError(f"step {step} is past the last cycle, which ends at {start}")


def rate_factor(step: int, cycle_epochs: list[int], steps_per_epoch: int, warm_up: float = 0.0) -> float:
    """The factor of all rates at `step`: 1 at each restart, falling along half a cosine towards 0.

    With `warm_up`, a share of the first cycle, it first climbs to 1 from a 25th, along half a cosine too; one cycle
    with a quarter of warm-up is fastai's one-cycle policy (Smith 2018, "A Disciplined Approach to Neural Network
    Hyper-Parameters", section 4), at a constant momentum.
    """
    lengths = [epochs * steps_per_epoch for epochs in cycle_epochs]
    cycle, within, length = position_in_cycle(step, lengths)
    climb = round(warm_up * length) if cycle == 0 else 0
    if within < climb:
        return WARM_UP_START + (1 - WARM_UP_START) * 0.5 * (1 - math.cos(math.pi * within / climb))
    return 0.5 * (1 + math.cos(math.pi * (within - climb) / (length - climb)))


def group_rates(lr: float | Sequence[float], lr_ratio: float) -> dict[str, float]:
    """The rate of each layer group, given one by one, early to head, or as the head's, each group before it learning
    `lr_ratio` times slower; fast.ai advises 3 to 10."""
    if isinstance(lr, int | float):
        return {group: lr / lr_ratio**above for above, group in reversed(list(enumerate(reversed(GROUPS))))}
    return dict(zip(GROUPS, lr, strict=True))


def thawed_rates(lr: float | Sequence[float], lr_ratio: float, frozen: str) -> dict[str, float]:
    """The same for the groups that are not `frozen`."""
    rates = group_rates(lr, lr_ratio)
    return {group: rate for group, rate in rates.items() if group not in FROZEN_GROUPS[frozen]}
