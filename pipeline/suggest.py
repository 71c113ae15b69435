"""Learning rates suggested by an LR finder's curve, as pure functions of (rates, smoothed losses).

Each takes the rates in growing order and the smoothed losses at them, and gives a rate, or None where the
curve has too few points or never falls. `valley`, `slide`, `steep` and `minimum` are the four rules of fastai
v2's `callback/schedule.py`; Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3,
is where the range test comes from.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FEWEST_POINTS = 5
RISEN = 1.1


def usable_part(rates: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The curve without its first tenth, where the average has not settled, and its last 5 points, where it
    explodes; both arrays come out empty when fewer than 5 points would be left."""
    first, last = len(rates) // 10, len(rates) - 5
    if last - first < FEWEST_POINTS:
        return rates[:0], losses[:0]
    return rates[first:last], losses[first:last]


def falling_part(rates: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The curve up to its lowest point; both arrays come out empty where that has fewer than 5 points."""
    end = int(np.argmin(losses)) + 1 if len(losses) else 0
    return (rates[:end], losses[:end]) if end >= FEWEST_POINTS else (rates[:0], losses[:0])


def valley(rates: Floats, losses: Floats) -> float | None:
    """A rate half-way down the longest fall: at (1/3 + 1/6) of the longest decreasing subsequence."""
    if len(losses) < FEWEST_POINTS:
        return None
    length, end = _longest_fall(losses)
    if length < 2:
        return None
    return float(rates[max(end - length + length // 3 + length // 6, 0)])


def slide(rates: Floats, losses: Floats, window: int = 15, threshold: float = 0.005) -> float | None:
    """The last rate before the blow-up: an interval of `window` points slides left from the curve's right end for
    as long as the gradient at its two ends differs by more than `threshold`; its left end is the answer."""
    if len(losses) < FEWEST_POINTS:
        return None
    window = min(window, len(losses) - 1)
    gradient = np.gradient(losses)
    left = len(losses) - 1 - window
    while left > 0 and abs(gradient[left + window] - gradient[left]) > threshold:
        left -= 1
    return float(rates[left])


def steep(rates: Floats, losses: Floats) -> float | None:
    """The rate at which the loss falls fastest for the same relative growth of the rate."""
    if len(losses) < FEWEST_POINTS:
        return None
    slopes = np.diff(losses) / np.diff(np.log(rates))
    at = int(np.argmin(slopes))
    return float(rates[at]) if slopes[at] < 0 else None


def minimum(rates: Floats, losses: Floats) -> float | None:
    """A tenth of the rate at the lowest loss; at the lowest point itself nothing falls any more."""
    if len(losses) < FEWEST_POINTS or np.argmin(losses) == 0:
        return None
    return float(rates[int(np.argmin(losses))] / 10)


def below_rise(rates: Floats, losses: Floats) -> float | None:
    """A tenth of the rate from which on the loss stays a tenth above its lowest; None where it does not rise so far.

    It is for the curve of a network that is nearly trained, which is flat up to where it explodes, and on which the
    rules above find nothing: a rate there does no harm, though it is not known to help.
    """
    if len(losses) < FEWEST_POINTS:
        return None
    below = np.flatnonzero(losses <= RISEN * losses.min())
    return float(rates[below[-1]] / 10) if below[-1] + 1 < len(losses) else None


RULES: dict[str, Callable[[Floats, Floats], float | None]] = {
    "valley": valley,
    "steep": steep,
    "slide": slide,
    "minimum": minimum,
}


def suggestions(rates: Floats, losses: Floats) -> dict[str, float | None]:
    """What every rule suggests for a curve, by the rule's name.

    The rules see the curve up to its lowest point; `slide`, which starts from the blow-up, sees all that is usable.
    A rate that is not below the lowest point's is no suggestion.
    """
    usable = usable_part(rates, losses)
    falling = falling_part(*usable)
    if not len(falling[0]):
        return dict.fromkeys(RULES)
    found = {name: rule(*(usable if rule is slide else falling)) for name, rule in RULES.items()}
    lowest = falling[0][-1]
    return {name: rate if rate is not None and rate < lowest else None for name, rate in found.items()}


def _longest_fall(losses: Floats) -> tuple[int, int]:
    """Length and last index of the longest strictly decreasing subsequence, which may skip points."""
    lengths = np.ones(len(losses), dtype=np.int64)
    for end in range(1, len(losses)):
        higher = losses[:end] > losses[end]
        if higher.any():
            lengths[end] = 1 + lengths[:end][higher].max()
    end = int(np.argmax(lengths))
    return int(lengths[end]), end
