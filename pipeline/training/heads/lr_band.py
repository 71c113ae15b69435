"""The LR range test for many seeds at once: the band in which their curves lie, and the rates that they suggest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.data.batches import Batches, seed_for
from pipeline.recipe.schema import LrFind
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.console import track
from pipeline.system.errors import UserError
from pipeline.training.heads.many_heads import HeadSetting, count_at_once, descend, epoch_of, for_seeds
from pipeline.training.heads.stacked_heads import HeadShape, StackedHeads
from pipeline.training.heads.stacked_optimizers import StackedOptimizer, build_stacked_optimizer
from pipeline.training.lr_finder import EXPLODED, SMOOTHING, Curve, debiased_average, suggestions
from pipeline.training.optim import AS_EVER

LOW, MIDDLE, HIGH = 0.1, 0.5, 0.9
# Reading losses waits for the device, which on a GPU takes too long to do at every step.
STEPS_BETWEEN_CHECKS = 10


@dataclass(frozen=True)
class Band:
    """The `low` (10 %), `middle` (median) and `high` (90 %) of the seeds' smoothed losses at the growing `rates`.

    A seed whose curve has ended has exploded and counts as above all others: the band ends where most of the curves do,
    and `high` is infinite from where a tenth of them have ended.
    """

    rates: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    middle: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]


def range_tests(
    seeds: Sequence[int],
    shape: HeadShape,
    tested: HeadSetting,
    batches: Batches,
    settings: LrFind,
    options: TrainingOptions = AS_EVER,
    *,
    heads_at_once: int | None = None,
) -> list[Curve]:
    """For each seed the curve that `lr_finder.range_test` gives for a new head with that seed and batches in its order,
    with the dropout, decay and smoothing of the head that is `tested`, by an optimizer and steps of these `options`: on
    a CPU the same up to rounding. UserError if a loss is no number from the first."""
    at_once = heads_at_once or count_at_once(shape, batches.batch_size, batches.device)
    growth = np.geomspace(settings.start_lr, settings.end_lr, settings.iterations)
    curves: list[Curve] = []
    for start in range(0, len(seeds), at_once):
        lot = seeds[start : start + at_once]
        stack = StackedHeads(shape, [(seed, tested.dropout) for seed in lot], batches.device)
        rates, decays = [settings.end_lr] * len(lot), [tested.weight_decay] * len(lot)
        optimizer = build_stacked_optimizer(list(stack.parameters.values()), rates, decays, options)
        description = f"finding the learning rate of {len(lot)} seeds"
        factors = track(growth / settings.end_lr, description, settings.iterations, "batches")
        smoothing = torch.full((len(lot),), tested.label_smoothing, device=batches.device)
        losses = list(_losses(stack, optimizer, batches, factors, smoothing, options))
        curves += [_curve(growth, of_seed) for of_seed in torch.stack(losses, dim=1).tolist()]
    return curves


def band_of(curves: Sequence[Curve]) -> Band:
    """The band of these curves; each of its points is the smoothed loss of one of them."""
    rates = max((curve.rates for curve in curves), key=len)
    smoothed = np.full((len(curves), len(rates)), np.inf)
    for row, curve in zip(smoothed, curves, strict=True):
        row[: len(curve.smoothed)] = curve.smoothed
    low, middle, high = np.quantile(smoothed, [LOW, MIDDLE, HIGH], axis=0, method="inverted_cdf")
    end = int(np.isfinite(middle).sum())
    return Band(rates[:end], low[:end], middle[:end], high[:end])


def band_table(band: Band) -> pd.DataFrame:
    """A row per batch: `lr`, and `smoothed_loss_low`, `smoothed_loss_median` and `smoothed_loss_high`."""
    return pd.DataFrame(
        {
            "lr": band.rates,
            "smoothed_loss_low": band.low,
            "smoothed_loss_median": band.middle,
            "smoothed_loss_high": band.high,
        }
    )


def suggested_by_seed(curves: Sequence[Curve], rule: str) -> list[float]:
    """The rates that `rule` suggests for the curves, lowest first; a curve without a suggestion is left out."""
    found = [suggestions(curve.rates, curve.smoothed)[rule] for curve in curves]
    return sorted(rate for rate in found if rate is not None)


def _losses(
    stack: StackedHeads,
    optimizer: StackedOptimizer,
    batches: Batches,
    factors: Iterator[float],
    smoothing: Tensor,
    options: TrainingOptions,
) -> Iterator[Tensor]:
    """The loss of every seed before each step, until all of their curves have ended."""
    generators = [
        torch.Generator(batches.device).manual_seed(seed_for(stack.seeds[group.seed], 0)) for group in stack.groups
    ]
    average = torch.zeros(len(stack), dtype=torch.float64, device=batches.device)
    lowest, has_ended = torch.full_like(average, torch.inf), torch.zeros_like(average, dtype=torch.bool)
    by_seed = for_seeds(batches, stack.seeds)
    steps = (step for epoch in count() for step in epoch_of(by_seed, epoch))
    for number, (factor, batch) in enumerate(zip(factors, steps, strict=False), start=1):
        loss = descend(stack, batch, generators, smoothing, options).weighted
        optimizer.step(factor)
        yield loss
        average = average * SMOOTHING + loss * (1 - SMOOTHING)
        smoothed = average / (1 - SMOOTHING**number)
        lowest = torch.minimum(lowest, smoothed)
        has_ended |= ~loss.isfinite() | (smoothed > EXPLODED * lowest)
        if number % STEPS_BETWEEN_CHECKS == 0 and bool(has_ended.all()):
            return


def _curve(growth: npt.NDArray[np.float64], losses: list[float]) -> Curve:
    end, smoothed = _end(losses)
    if end == 0:
        raise UserError(f"The loss is no number at the rate {growth[0]:g} already; lower lr_find.start_lr.")
    return Curve(growth[:end], np.array(losses[:end]), smoothed[:end])


def _end(losses: list[float]) -> tuple[int, npt.NDArray[np.float64]]:
    """How many of the losses belong to the curve, by the rule of `range_test`, and the smoothed losses."""
    finite = np.isfinite(losses)
    known = np.array(losses)[: len(losses) if finite.all() else int(np.argmin(finite))]
    smoothed = np.array([debiased_average(losses[: index + 1]) for index in range(len(known))])
    exploded = smoothed > EXPLODED * np.minimum.accumulate(smoothed) if len(known) else np.array([], dtype=bool)
    return (int(np.argmax(exploded)) + 1 if exploded.any() else len(known)), smoothed
