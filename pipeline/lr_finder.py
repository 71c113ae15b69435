"""The LR range test: the rate grows with every batch, the loss is watched, and nothing else changes.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3; exponential growth, the smoothed
loss and the stop at four times the best are fastai's.
"""

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.batches import Batches, seed_for
from pipeline.console import track
from pipeline.errors import UserError
from pipeline.fit import train_step
from pipeline.layer_groups import training_mode
from pipeline.optim import set_rates

SMOOTHING = 0.98
EXPLODED = 4.0


@dataclass(frozen=True)
class Curve:
    """`rates` of the fastest layer group, growing; the batch `losses` before each step, which pictures' weights count
    in; and the same `smoothed`."""

    rates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    smoothed: npt.NDArray[np.float64]


def curve_table(curve: Curve) -> pd.DataFrame:
    """A row per batch: `lr`, `loss`, `smoothed_loss`."""
    return pd.DataFrame({"lr": curve.rates, "loss": curve.losses, "smoothed_loss": curve.smoothed})


def range_test(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    start_lr: float,
    end_lr: float,
    iterations: int,
    fixed_statistics: bool = False,
) -> Curve:
    """Train for `iterations` batches while the rate grows exponentially from `start_lr` to `end_lr`.

    The groups of `optimizer` keep the ratio of their `initial_lr`s; the fastest takes the rates of the curve. Stops
    early when the smoothed loss exceeds four times its lowest, or is no longer a number (UserError if it never was).
    Afterwards weights, buffers, modes, gradients, optimizer and random state are as they were.
    """
    growth = np.geomspace(start_lr, end_lr, iterations)
    top = max(group["initial_lr"] for group in optimizer.param_groups)
    losses: list[float] = []
    smoothed: list[float] = []
    with _no_trace(network, optimizer):
        training_mode(network, fixed_statistics)
        torch.manual_seed(seed_for(batches.seed or 0, 0))
        steps = zip(growth, _endless(batches), strict=False)
        for rate, (inputs, targets, weights) in track(steps, "finding the learning rate", iterations, "batches"):
            set_rates(optimizer, rate / top)
            loss = float(train_step(network, optimizer, inputs, targets, weights=weights).weighted)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smoothed.append(debiased_average(losses))
            if smoothed[-1] > EXPLODED * min(smoothed):
                break
    if not losses:
        raise UserError(f"The loss is no number at the rate {start_lr:g} already; lower lr_find.start_lr.")
    return Curve(growth[: len(losses)], np.array(losses), np.array(smoothed))


def debiased_average(values: list[float], decay: float = SMOOTHING) -> float:
    """The exponential moving average of `values` at its end, corrected for having started at zero.

    Kingma & Ba 2015, "Adam", section 3.
    """
    ages = np.arange(len(values) - 1, -1, -1)
    weights = decay**ages
    return float(np.dot(weights, values) / weights.sum())


def _endless(batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    epoch = 0
    while True:
        yield from batches.weighted_epoch(epoch)
        epoch += 1


@contextmanager
def _no_trace(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    modes = {module: module.training for module in network.modules()}
    gradients = {parameter: parameter.grad for parameter in network.parameters()}
    for parameter in gradients:
        parameter.grad = None
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 — others may draw from it
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
