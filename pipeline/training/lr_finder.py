"""The LR range test, in which the rate grows with every batch, and the rates that its curve suggests.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3; exponential growth, the smoothed
loss and the stop at four times the best are fastai's.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.batches import Batches, seed_for
from pipeline.models.layer_groups import FixedStatistics, training_mode
from pipeline.ranks.exchange import of_leader
from pipeline.recipe.schema import LrFind
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.console import say, track
from pipeline.system.errors import UserError
from pipeline.training.optim import AS_EVER, set_rates
from pipeline.training.step import steps_of

Floats: TypeAlias = npt.NDArray[np.float64]
SMOOTHING = 0.98  # of the moving average of the losses
EXPLODED = 4.0  # how many times its lowest the smoothed loss is where a range test stops
RISEN = 1.25  # how many times its start the loss is where `below_rise` takes it to have risen
RISE_SMOOTHING = 0.9  # of the moving average there
# Of AdamW, where a curve says nothing: head and all layers trained at it within one standard deviation of the best of
# nine rates, on three sets (docs/accuracy.md).
KNOWN_RATE = 3e-4
BELOW_RISE_BOUNDS = (KNOWN_RATE, 1e-3)
FEWEST_POINTS = 5  # that a suggestion is made from


@dataclass(frozen=True)
class Curve:
    """The growing `rates` of the fastest layer group; the batch `losses` before each step, weighted as in training; and
    the same `smoothed`."""

    rates: Floats
    losses: Floats
    smoothed: Floats


def curve_table(curve: Curve) -> pd.DataFrame:
    """A row per batch: `lr`, `loss`, `smoothed_loss`."""
    return pd.DataFrame({"lr": curve.rates, "loss": curve.losses, "smoothed_loss": curve.smoothed})


def range_test(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    settings: LrFind,
    fixed_statistics: FixedStatistics = "none",
    options: TrainingOptions = AS_EVER,
    label_smoothing: float = 0.0,
) -> Curve:
    """Train for `settings.iterations` batches while the rate grows exponentially from `start_lr` to `end_lr`.

    `fixed_statistics` is that of `training_mode`; each step smooths labels, and clips, accumulates and computes by the
    `options`. Groups of `optimizer` keep the ratio of their `initial_lr`s; the fastest takes the rates of the curve.
    Stops early when the smoothed loss exceeds four times its lowest, or is no longer a number (UserError if it never
    was).
    Afterwards weights, buffers, modes, gradients, optimizer and random state are as they were.
    """
    growth = np.geomspace(settings.start_lr, settings.end_lr, settings.iterations)
    top = max(group["initial_lr"] for group in optimizer.param_groups)
    losses: list[float] = []
    smoothed: list[float] = []
    with _restored(network, optimizer):
        training_mode(network, fixed_statistics)
        torch.manual_seed(seed_for(batches.seed or 0, 0))
        step = steps_of(network, optimizer, label_smoothing, options=options, deal=batches.deal)
        tests = zip(growth, _endless(batches), strict=False)
        for rate, (inputs, targets, weights) in track(
            tests, "finding the learning rate", settings.iterations, "batches"
        ):
            set_rates(optimizer, rate / top)
            loss = float(step(inputs, targets, weights).weighted)
            if batches.deal.is_shared:
                loss = of_leader(loss)  # so that all stop at the same step
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smoothed.append(debiased_average(losses))
            if smoothed[-1] > EXPLODED * min(smoothed):
                break
    if not losses:
        raise UserError(f"The loss is no number at the rate {settings.start_lr:g} already; lower lr_find.start_lr.")
    return Curve(growth[: len(losses)], np.array(losses), np.array(smoothed))


def debiased_average(values: list[float], decay: float = SMOOTHING) -> float:
    """The exponential moving average of `values` at its end, corrected for having started at zero.

    Kingma & Ba 2015, "Adam", section 3.
    """
    ages = np.arange(len(values) - 1, -1, -1)
    weights = decay**ages
    return float(np.dot(weights, values) / weights.sum())


def usable_part(rates: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The curve without its first tenth, where the average has not settled, and its last 5 points, where it explodes;
    both arrays are empty if fewer than 5 points would be left."""
    first, last = len(rates) // 10, len(rates) - 5
    if last - first < FEWEST_POINTS:
        return rates[:0], losses[:0]
    return rates[first:last], losses[first:last]


def falling_part(rates: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The curve up to its lowest point; both arrays are empty if it has fewer than 5 points."""
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
    steepest = int(np.argmin(slopes))
    return float(rates[steepest]) if slopes[steepest] < 0 else None


def minimum(rates: Floats, losses: Floats) -> float | None:
    """A tenth of the rate at the lowest loss; at the lowest point itself the loss no longer falls."""
    if len(losses) < FEWEST_POINTS or np.argmin(losses) == 0:
        return None
    return float(rates[int(np.argmin(losses))] / 10)


def below_rise(rates: Floats, losses: Floats) -> float | None:
    """A twentieth of the rate from which on the loss stays a quarter above where it started, from 3e-4 to 1e-3; None if
    it does not rise so far.

    For a network whose head is trained: its curve hardly falls before it explodes, so that the rules above tell noise
    from noise. The rise itself lay within a factor of five of its median over the curves of each of three sets (solar
    cells, ants and bees, digits). At three times the upper bound all three trained badly; at a third of the lower one,
    where the rule alone would often be, none trained better (docs/accuracy.md).
    """
    if len(losses) < FEWEST_POINTS:
        return None
    start = float(np.median(losses[: max(len(losses) // 3, 1)]))
    average = pd.Series(losses).ewm(alpha=1 - RISE_SMOOTHING).mean().to_numpy()
    below = np.flatnonzero(average <= RISEN * start)
    if not len(below) or below[-1] + 1 == len(losses):
        return None
    return float(np.clip(rates[below[-1]] / 20, *BELOW_RISE_BOUNDS))


RULES: dict[str, Callable[[Floats, Floats], float | None]] = {
    "valley": valley,
    "steep": steep,
    "slide": slide,
    "minimum": minimum,
}


def suggestions(rates: Floats, losses: Floats) -> dict[str, float | None]:
    """The suggestion of every rule for a curve, by the rule's name.

    The rules see the curve up to its lowest point; `slide`, which starts from the blow-up, sees the whole usable part.
    A rate that is not below the lowest point's is no suggestion.
    """
    usable = usable_part(rates, losses)
    falling = falling_part(*usable)
    if not len(falling[0]):
        return dict.fromkeys(RULES)
    found = {name: rule(*(usable if rule is slide else falling)) for name, rule in RULES.items()}
    lowest = falling[0][-1]
    return {name: rate if rate is not None and rate < lowest else None for name, rate in found.items()}


def suggest(curve: Curve, is_trained: bool) -> dict[str, float | None]:
    """The suggestion of every rule for a curve, by its name; where the head `is_trained`, of `below_rise` too."""
    found = suggestions(curve.rates, curve.smoothed)
    return found | {"below_rise": below_rise(curve.rates, curve.losses)} if is_trained else found


def choose_suggestion(
    found: Mapping[str, float | None], rule: str, curve: Curve, optimizer: str
) -> tuple[str, float | None]:
    """(the rule whose suggestion is taken, the rate): those of `rule`, or, where it suggests nothing, of `below_rise`,
    if that was asked too, or "known" and KNOWN_RATE for AdamW on a curve that reaches ten times it; a sentence says so.
    """
    if found[rule] is not None:
        return rule, found[rule]
    if found.get("below_rise") is not None:
        say(f"  {rule} suggests nothing on this curve; the rate is taken well below where the loss rises.")
        return "below_rise", found["below_rise"]
    if optimizer != "adamw" or curve.rates[-1] < 10 * KNOWN_RATE:
        return rule, None
    say(f"  {rule} suggests nothing on this curve; the rate is one that trained well on several sets.")
    return "known", KNOWN_RATE


def require_suggestion(rate: float | None, rule: str, figure: str) -> float:
    """The rate that `rule` suggests; UserError if it suggests none, which names the `figure` of the curve."""
    if rate is None:
        raise UserError(
            f"The loss never falls on the LR finder's curve, so {rule} suggests nothing; look at {figure}, and set the "
            "next stage's lr yourself or change lr_find.start_lr."
        )
    return rate


def _longest_fall(losses: Floats) -> tuple[int, int]:
    """Length and last index of the longest strictly decreasing subsequence, which may skip points."""
    lengths = np.ones(len(losses), dtype=np.int64)
    for end in range(1, len(losses)):
        higher = losses[:end] > losses[end]
        if higher.any():
            lengths[end] = 1 + lengths[:end][higher].max()
    end = int(np.argmax(lengths))
    return int(lengths[end]), end


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    epoch = 0
    while True:
        yield from batches.weighted_epoch(epoch)
        epoch += 1


@contextmanager
def _restored(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Restores network, optimizer and random states at the end of the block."""
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    modes = {module: module.training for module in network.modules()}
    gradients = {parameter: parameter.grad for parameter in network.parameters()}
    for parameter in gradients:
        parameter.grad = None
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 — other code may draw from it
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        network.load_state_dict(state)
        for module, training in modes.items():
            module.training = training
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        optimizer.load_state_dict(optimizer_state)
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
