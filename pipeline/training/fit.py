"""The training loop: yields one record per epoch, pauses on request, and knows of no stage, file or server."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.batches import Batches, seed_for
from pipeline.models.layer_groups import FixedStatistics, training_mode
from pipeline.ranks.deal import ALONE, Deal
from pipeline.ranks.exchange import ask_all
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.console import track
from pipeline.system.device import Precision, mixed_precision
from pipeline.system.errors import UserError
from pipeline.training.average import MovingAverage, averaged_steps
from pipeline.training.optim import rates_at, set_rates
from pipeline.training.records import EpochRecord, StepRecord
from pipeline.training.schedule import position_in_cycle, rate_factor
from pipeline.training.step import Step, step_precision, steps_of


@dataclass(frozen=True)
class Validated:
    """Mean cross-entropy, accuracy, and the mean of F1 over the classes that occur or are predicted, as in
    scikit-learn."""

    loss: float
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class TrainingProgress:
    """Training progress: completed `epochs`, and the `losses` and `seconds` of the batches done in the current epoch.
    `random_state` is torch's at that moment, by device; every epoch starts with its own."""

    epochs: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    random_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A part of a stage's training: `module`, the network or what lies above a cut of it, is trained by `optimizer` on
    the batches of `train`, through cosine cycles of `cycle_epochs` epochs each, and validated on those of `valid`.
    `fixed_statistics` is that of `training_mode`; `description` is shown beside its progress. In a `warm_up`, a share
    of the first cycle, the rates climb. If `is_compiled`, a Network is compiled for its training steps. `options` are
    those that all stages share. Several processes train together by `origin`, from which helpers build the same
    phase; see `joint`."""

    module: nn.Module
    optimizer: Optimizer
    train: Batches
    valid: Batches
    cycle_epochs: list[int]
    label_smoothing: float = 0.0
    fixed_statistics: FixedStatistics = "none"
    description: str = "training"
    warm_up: float = 0.0
    is_compiled: bool = False
    options: TrainingOptions = field(default_factory=TrainingOptions)
    origin: Any = None


def fit(
    phase: Phase,
    epochs_before: int = 0,
    steps_before: int = 0,
    start: TrainingProgress | None = None,
    pauses: Callable[[], bool] = lambda: False,
    average: MovingAverage | None = None,
) -> Iterator[EpochRecord | TrainingProgress]:
    """Train through the cycles of `phase`, and validate after every epoch.

    Yields a record after every epoch, and the progress after every step where `pauses()` is true. A network and an
    optimizer in the state that they had then resume from it (`start`) as if there had been no break. Random numbers
    (order, augmentation, dropout) follow from the seed of the training batches and the epoch alone. After each step the
    weights enter the moving `average`.

    `epochs_before` and `steps_before` were done by earlier stages: records count on from there, and the order of
    the pictures differs from theirs. Raises UserError, with step and rates, when the loss is no longer a number.
    """
    train, cycle_epochs = phase.train, phase.cycle_epochs
    assert train.seed is not None, "training batches have to be shuffled"
    start = start or TrainingProgress()
    settings = phase.label_smoothing, phase.is_compiled, phase.options
    step = steps_of(phase.module, phase.optimizer, *settings, train.deal)
    if average is not None:
        step = averaged_steps(step, average)
    for done in range(start.epochs, sum(cycle_epochs)):
        epoch, first_step = epochs_before + done, steps_before + done * len(train)
        factors = [
            rate_factor(done * len(train) + index, cycle_epochs, len(train), phase.warm_up)
            for index in range(len(train))
        ]
        progress = start if done == start.epochs else TrainingProgress(done)
        torch.manual_seed(seed_for(train.seed + 1, epoch))
        _set_random_state(progress.random_state)
        training_mode(phase.module, phase.fixed_statistics)
        batches = track(
            train.weighted_epoch(epoch, len(progress.losses)),
            f"{phase.description}, epoch {done + 1} of {sum(cycle_epochs)}",
            len(train.rows) - len(progress.losses) * train.batch_size,
            "images",
            train.batch_size,
        )
        finished = yield from _train_epoch(phase, step, batches, factors, first_step, progress, pauses)
        validated = validate(phase.module, phase.valid, phase.options.precision, train.deal)
        yield EpochRecord(
            epoch=epoch + 1,
            step=first_step + len(train),
            cycle=position_in_cycle(done, cycle_epochs)[0] + 1,
            train_loss=sum(finished.losses) / len(train),
            valid_loss=validated.loss,
            valid_accuracy=validated.accuracy,
            valid_macro_f1=validated.macro_f1,
            seconds=finished.seconds,
            images_per_second=len(train) * min(train.batch_size, len(train.rows)) / finished.seconds,
            steps=[
                StepRecord(first_step + index + 1, loss, rates_at(phase.optimizer, factor))
                for index, (loss, factor) in enumerate(zip(finished.losses, factors, strict=True))
            ],
        )


def _train_epoch(
    phase: Phase,
    step: Step,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    factors: list[float],
    first_step: int,
    progress: TrainingProgress,
    pauses: Callable[[], bool],
) -> Generator[TrainingProgress, None, TrainingProgress]:
    """Train the rest of an epoch, from `progress` on; yields the progress at each pause, and returns it at the end."""
    optimizer, device = phase.optimizer, phase.train.device
    losses = [torch.tensor(loss, device=device) for loss in progress.losses]
    seconds = progress.seconds
    began = time.perf_counter()
    for factor, (inputs, targets, weights) in zip(factors[len(losses) :], batches, strict=True):
        rates = set_rates(optimizer, factor)
        losses.append(step(inputs, targets, weights).plain)
        if len(losses) % _steps_between_checks(inputs) == 0:
            _check_finite(losses[-1], first_step + len(losses), rates)
        if pauses():
            _check_finite(losses[-1], first_step + len(losses), rates)
            seconds += time.perf_counter() - began
            yield TrainingProgress(progress.epochs, torch.stack(losses).tolist(), seconds, _random_state(device))
            began = time.perf_counter()
    values = torch.stack(losses).tolist()
    _check_finite(losses[-1], first_step + len(losses), rates_at(optimizer, factors[-1]))
    return TrainingProgress(progress.epochs, values, seconds + time.perf_counter() - began)


@torch.no_grad()
def validate(
    network: nn.Module, batches: Batches, precision: Literal["auto"] | Precision = "auto", deal: Deal = ALONE
) -> Validated:
    """Loss, accuracy and macro F1 of the network over `batches`, in eval mode and in what it is trained in if the
    recipe asks for this `precision`; by several processes, each of which goes through its stretch of the rows."""
    network.eval()
    precision = step_precision(network, precision)
    count = len(batches.rows)
    batches = replace(batches, rows=batches.rows[deal.stretch(count)])
    loss_sum: Tensor | float = 0.0
    right: Tensor | float = 0.0
    named: Tensor | float = 0.0  # how often each class occurs or is predicted
    for inputs, targets in batches.epoch(0):
        with mixed_precision(inputs.device, precision):
            logits = network(inputs)
        loss_sum = loss_sum + F.cross_entropy(logits.float(), targets, reduction="sum")
        classes, predicted = logits.shape[1], logits.argmax(1)
        right = right + torch.bincount(targets[predicted == targets], minlength=classes)
        named = named + torch.bincount(torch.cat([targets, predicted]), minlength=classes)
    if deal.is_shared:
        loss_sum, right, named = _sums_of_all(loss_sum, right, named)
    right, named = torch.as_tensor(right), torch.as_tensor(named)
    f1 = 2 * right[named > 0] / named[named > 0]
    return Validated(float(loss_sum) / count, float(right.sum()) / count, float(f1.mean()))


def _sums_of_all(loss: Tensor | float, right: Tensor | float, named: Tensor | float) -> tuple[float, Tensor, Tensor]:
    """The sums over the processes; one that had no rows has no tensors."""
    own = None if isinstance(loss, float) else (float(loss), torch.as_tensor(right).cpu(), torch.as_tensor(named).cpu())
    losses, rights, names = zip(*(one for one in ask_all(own) if one is not None), strict=True)
    return sum(losses), torch.stack(rights).sum(0), torch.stack(names).sum(0)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _steps_between_checks(inputs: Tensor) -> int:
    """Reading a loss waits for the device, which on a GPU takes too long to do at every step."""
    return 1 if inputs.device.type == "cpu" else 20


def _check_finite(loss: Tensor, step: int, rates: dict[str, float]) -> None:
    if not math.isfinite(float(loss)):
        shown = ", ".join(f"{group} {rate:.3g}" for group, rate in rates.items())
        raise UserError(f"The loss is {float(loss)} at step {step} with rates {shown}; lower the stage's lr.")
