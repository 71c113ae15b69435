"""Hundreds of heads on stored activations in one pass, each with a result equal to that of training it alone.

Each head has its own seed, rate, weight decay, dropout and label smoothing. The seed gives its first weights, the order
of its pictures and its dropout masks, as in `fit` after `torch.manual_seed(seed)`. On a CPU a head ends where `fit`
ends, up to rounding. On a GPU it has the same first weights and order, but masks of another generator, and is computed
in float32, where `fit` computes in bfloat16. A head's result does not depend on those that are trained beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.batches import Batches, seed_for
from pipeline.console import track
from pipeline.device import sent
from pipeline.fit import Validated
from pipeline.schedule import cosine_factor
from pipeline.stacked_head import StackedHeads, bytes_per_head
from pipeline.stacked_optim import StackedAdamW

# What heads that are trained at once may take: on a CPU so many bytes, since what is larger leaves its caches and is
# slower, on a GPU a share of its free memory.
CPU_BYTES = 2**27
GPU_SHARE = 0.4

CPU = torch.device("cpu")


@dataclass(frozen=True)
class HeadSetting:
    """What tells one head from another."""

    seed: int
    lr: float
    weight_decay: float = 0.0
    dropout: float = 0.0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class TrainedHead:
    """By epoch the mean batch loss in training and the results in validation, as in `fit.EpochRecord`; from where
    its loss is no longer a number on, a head has `diverged`, and so are they. `state` is that of `build_head` at the
    end, where it was asked for."""

    train_losses: list[float]
    valid: list[Validated]
    diverged: bool
    state: dict[str, Tensor] = field(repr=False)


def train_heads(
    settings: Sequence[HeadSetting],
    classes: int,
    hidden: int,
    train: Batches,
    valid: Batches,
    cycle_epochs: list[int],
    *,
    heads_at_once: int | None = None,
    keep_states: bool = False,
) -> list[TrainedHead]:
    """The result of each of `settings`, in their order, after cosine cycles of `cycle_epochs` epochs.

    `train` and `valid` are batches of stored activations (see `tune.activation_batches`); every head has its own seed
    in place of that of `train`. More than `heads_at_once` (by default as many as memory allows) are trained one lot
    after another.
    """
    assert train.augmentation is None, "stored activations are not augmented"
    order = sorted(range(len(settings)), key=lambda index: (settings[index].seed, settings[index].dropout))
    width = train.fetch(train.rows[:1]).shape[1]
    at_once = heads_at_once or count_at_once(width, classes, hidden, train.batch_size, train.device)
    lots = [order[start : start + at_once] for start in range(0, len(order), at_once)]
    steps = len(lots) * sum(cycle_epochs) * len(train)
    ticks = track(range(steps), f"training {len(settings)} heads", steps, "steps")
    results: dict[int, TrainedHead] = {}
    for lot in lots:
        chosen = [settings[index] for index in lot]
        stack = StackedHeads(width, classes, hidden, [(one.seed, one.dropout) for one in chosen], train.device)
        trained = _train_lot(stack, chosen, train, valid, cycle_epochs, lambda: next(ticks))
        for place, (index, (losses, validated)) in enumerate(zip(lot, trained, strict=True)):
            numbers = [*losses, *(one.loss for one in validated)]
            state = stack.state(place) if keep_states else {}
            results[index] = TrainedHead(losses, validated, not bool(np.isfinite(numbers).all()), state)
    for _ in ticks:
        pass
    return [results[index] for index in range(len(settings))]


def count_at_once(width: int, classes: int, hidden: int, batch_size: int, device: torch.device) -> int:
    """How many heads memory allows at once."""
    free = GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_BYTES
    return max(int(free) // bytes_per_head(width, classes, hidden, batch_size), 1)


def epoch_of(seeds: Sequence[int], batches: Batches, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The (inputs, targets) that a head of each seed trains on in one epoch: (pictures, seeds, activations) and
    (pictures, seeds)."""
    order = np.stack([_rows(replace(batches, seed=seed), epoch) for seed in seeds], axis=-1)
    targets = sent(torch.from_numpy(batches.targets[order]), batches.device)
    for step, rows in enumerate(order):
        inputs = batches.fetch(rows.ravel())
        yield inputs.view(*rows.shape, -1), targets[step]


def losses_of(logits: Tensor, targets: Tensor, smoothing: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(what is descended on, the cross-entropy) by head, for `logits` (pictures, heads, classes) and `targets`
    (pictures, heads); with `smoothing` by head, the first has its labels smoothed as `F.cross_entropy` does it."""
    logs = logits.log_softmax(-1)
    plain = -logs.gather(-1, targets[..., None]).squeeze(-1).mean(0)
    if smoothing is None:
        return plain, plain.detach()
    return (1 - smoothing) * plain - smoothing * logs.mean((0, 2)), plain.detach()


def _train_lot(
    stack: StackedHeads,
    settings: Sequence[HeadSetting],
    train: Batches,
    valid: Batches,
    cycle_epochs: list[int],
    tick: Callable[[], object],
) -> list[tuple[list[float], list[Validated]]]:
    """(losses, results in validation) by epoch of each head of the stack."""
    optimizer = StackedAdamW(
        list(stack.parameters.values()), [one.lr for one in settings], [one.weight_decay for one in settings]
    )
    smoothed = [one.label_smoothing for one in settings]
    smoothing = torch.tensor(smoothed, device=train.device) if any(smoothed) else None
    generators = [torch.Generator(train.device) for _ in stack.groups]
    mean_losses, validated = [], []
    for epoch in range(sum(cycle_epochs)):
        for group, generator in zip(stack.groups, generators, strict=True):
            generator.manual_seed(seed_for(stack.seeds[group.seed] + 1, epoch))
        losses = []
        for step, (inputs, targets) in enumerate(epoch_of(stack.seeds, train, epoch), epoch * len(train)):
            logits = stack.train(inputs, generators)
            descended, plain = losses_of(logits, targets[:, stack.seed_of], smoothing)
            descended.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step(cosine_factor(step, cycle_epochs, len(train)))
            losses.append(plain)
            tick()
        mean_losses.append(torch.stack(losses).mean(0).tolist())
        validated.append(judge_heads(stack, valid))
    by_head = zip(zip(*mean_losses, strict=True), zip(*validated, strict=True), strict=True)
    return [(list(losses), list(results)) for losses, results in by_head]


@torch.no_grad()
def judge_heads(stack: StackedHeads, batches: Batches) -> list[Validated]:
    """What `fit.validate` gives for each head."""
    loss: Tensor | float = 0.0
    right: Tensor | int = 0
    named: Tensor | int = 0
    for inputs, targets in batches.epoch(0):
        logits = stack.judge(inputs)
        of_all = targets[:, None].expand(-1, len(stack))
        predicted, classes = logits.argmax(-1), logits.shape[-1]
        loss = loss + losses_of(logits, of_all)[1] * len(targets)
        right = right + _counts(of_all, predicted == of_all, classes)
        for of_class in (of_all, predicted):
            named = named + _counts(of_class, torch.ones_like(of_all), classes)
    loss, right, named = torch.as_tensor(loss), torch.as_tensor(right), torch.as_tensor(named)
    count = len(batches.rows)
    shares = torch.where(named > 0, 2 * right / named, 0.0).sum(1) / (named > 0).sum(1)
    rows = torch.stack([loss.double() / count, right.sum(1).double() / count, shares.double()], dim=1)
    return [Validated(*row) for row in rows.tolist()]


def _counts(of_class: Tensor, which: Tensor, classes: int) -> Tensor:
    """How many of (pictures, heads) are of each class: (heads, classes)."""
    counts = torch.zeros((of_class.shape[1], classes), dtype=torch.int64, device=of_class.device)
    return counts.scatter_add_(1, of_class.T, which.T.long())


def _rows(batches: Batches, epoch: int) -> npt.NDArray[np.int64]:
    """Which rows make up the batches of an epoch: (batches, pictures)."""
    of_rows = replace(batches, fetch=torch.from_numpy, device=CPU, workers=0)
    return np.stack([rows.numpy() for rows, _ in of_rows.epoch(epoch)])
