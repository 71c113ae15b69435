"""The training loop: yields one record per epoch and knows of no stage, file or tracking server."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.batches import Batches, seed_for
from pipeline.console import track
from pipeline.device import mixed_precision
from pipeline.errors import UserError
from pipeline.layer_groups import training_mode
from pipeline.optim import set_rates
from pipeline.schedule import cosine_factor, position_in_cycle


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step: its number over all stages, its loss, and the rate of each layer group."""

    step: int
    loss: float
    rates: dict[str, float]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. `epoch` and `step` count over all stages, from 1; `train_loss` is the mean cross-entropy of the
    epoch's batches as they were trained on, without label smoothing."""

    epoch: int
    step: int
    cycle: int
    train_loss: float
    valid_loss: float
    valid_accuracy: float
    seconds: float
    images_per_second: float
    steps: list[StepRecord] = field(repr=False)

    @property
    def overfit_gap(self) -> float:
        """How far the validation loss lies above the training loss."""
        return self.valid_loss - self.train_loss


def fit(
    network: nn.Module,
    optimizer: Optimizer,
    train: Batches,
    valid: Batches,
    cycle_epochs: list[int],
    *,
    epochs_before: int = 0,
    steps_before: int = 0,
    label_smoothing: float = 0.0,
    fixed_statistics: bool = False,
    description: str = "training",
) -> Iterator[EpochRecord]:
    """Train through cosine cycles of `cycle_epochs` epochs each, and validate after every epoch.

    `epochs_before` and `steps_before` were done by earlier stages: records count on from there, and the order of
    the pictures differs from theirs. `fixed_statistics` is that of `training_mode`. Random numbers (order,
    augmentation, dropout) follow from the seed of `train` and the epoch alone. Raises UserError, with step and rates,
    when the loss is no longer a number.
    """
    assert train.seed is not None, "training batches have to be shuffled"
    total = sum(cycle_epochs)
    for done in range(total):
        epoch = epochs_before + done
        torch.manual_seed(seed_for(train.seed + 1, epoch))
        training_mode(network, fixed_statistics)
        started = time.perf_counter()
        steps = []
        losses: list[Tensor] = []
        batches = track(
            train.epoch(epoch),
            f"{description}, epoch {done + 1} of {total}",
            len(train.rows),
            "images",
            train.batch_size,
        )
        for index, (inputs, targets) in enumerate(batches):
            rates = set_rates(optimizer, cosine_factor(done * len(train) + index, cycle_epochs, len(train)))
            losses.append(train_step(network, optimizer, inputs, targets, label_smoothing))
            steps.append((steps_before + done * len(train) + index + 1, rates))
            if len(losses) % _steps_between_checks(inputs) == 0:
                _check_finite(losses[-1], *steps[-1])
        values = torch.stack(losses).tolist()
        _check_finite(losses[-1], *steps[-1])
        seconds = time.perf_counter() - started
        valid_loss, valid_accuracy = validate(network, valid)
        yield EpochRecord(
            epoch=epoch + 1,
            step=steps[-1][0],
            cycle=position_in_cycle(done, cycle_epochs)[0] + 1,
            train_loss=sum(values) / len(values),
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            seconds=seconds,
            images_per_second=len(train) * min(train.batch_size, len(train.rows)) / seconds,
            steps=[StepRecord(step, loss, rates) for (step, rates), loss in zip(steps, values, strict=True)],
        )


def train_step(
    network: nn.Module, optimizer: Optimizer, inputs: Tensor, targets: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """One step of descent; the batch's cross-entropy before it, without label smoothing, still on the device."""
    with mixed_precision(inputs.device):
        logits = network(inputs)
    logits = logits.float()
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    plain = F.cross_entropy(logits, targets) if label_smoothing else loss
    return plain.detach()


@torch.no_grad()
def validate(network: nn.Module, batches: Batches) -> tuple[float, float]:
    """(mean cross-entropy, accuracy) over all of `batches`, in eval mode."""
    network.eval()
    loss_sum = torch.zeros((), device=batches.device)
    right = torch.zeros((), device=batches.device)
    for inputs, targets in batches.epoch(0):
        with mixed_precision(inputs.device):
            logits = network(inputs)
        loss_sum += F.cross_entropy(logits.float(), targets, reduction="sum")
        right += (logits.argmax(1) == targets).sum()
    count = len(batches.rows)
    return float(loss_sum) / count, float(right) / count


def _steps_between_checks(inputs: Tensor) -> int:
    """Looking at a loss waits for the device, which on a GPU is too dear to do at every step."""
    return 1 if inputs.device.type == "cpu" else 20


def _check_finite(loss: Tensor, step: int, rates: dict[str, float]) -> None:
    if not math.isfinite(float(loss)):
        spelled = ", ".join(f"{group} {rate:.3g}" for group, rate in rates.items())
        raise UserError(f"The loss is {float(loss)} at step {step} with rates {spelled}; lower the stage's lr.")
