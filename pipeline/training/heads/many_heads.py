"""Many heads trained and validated in one pass over stored activations, each with its own seed, rate and decay."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.batches import Batches, seed_for
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.console import track
from pipeline.system.device import to_device
from pipeline.training.average import MovingAverage
from pipeline.training.fit import Validated
from pipeline.training.heads.stacked_heads import HeadShape, StackedHeads, bytes_per_head
from pipeline.training.heads.stacked_optimizers import build_stacked_optimizer, clip_each
from pipeline.training.keep import best_index, stops_early
from pipeline.training.optim import AS_EVER
from pipeline.training.schedule import rate_factor
from pipeline.training.step import StepLoss

# The memory that heads trained at once may take: on a CPU so many bytes, since more does not fit its caches and is
# slower; on a GPU a share of its free memory.
CPU_BYTES = 2**27
GPU_SHARE = 0.4
CPU = torch.device("cpu")
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class HeadSetting:
    """How a head is trained on stored activations, for one cosine cycle of `stored_epochs` epochs; the `seed` decides
    its first weights, the order of the pictures, and its dropout."""

    lr: float
    weight_decay: float = 0.0
    dropout: float = 0.0
    label_smoothing: float = 0.0
    stored_epochs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class SharedSettings:
    """What is the same for all heads: the `warm_up`, a share of the cycle in which rates climb, and the `options` of
    all training stages; a time budget is none of a head among many, nor an early stop beside a moving average."""

    warm_up: float = 0.0
    options: TrainingOptions = AS_EVER

    @classmethod
    def of(cls, recipe: Recipe) -> "SharedSettings":
        """As train_head trains by this recipe."""
        return cls(recipe.train_head.warm_up, recipe.training)


AS_ALONE = SharedSettings()


@dataclass(frozen=True)
class TrainedHead:
    """The mean batch loss in training and the results in validation, by epoch up to an early stop, as in
    `fit.EpochRecord`; `kept` is the index of the epoch whose weights train_head would keep: the last, with the results
    of the moving average, if that is kept. A head has `diverged` if one of these is no number. `state` is that of
    `build_head` after all of its epochs, if it was asked for."""

    train_losses: list[float]
    valid: list[Validated]
    kept: int
    diverged: bool
    state: dict[str, Tensor] = field(repr=False)


def train_heads(
    settings: Sequence[HeadSetting],
    shape: HeadShape,
    train: Batches,
    valid: Batches,
    shared: SharedSettings = AS_ALONE,
    *,
    heads_at_once: int | None = None,
    keep_states: bool = False,
) -> list[TrainedHead]:
    """The result of each of `settings`, in their order, each trained by what is `shared` too.

    `train` and `valid` are batches of stored activations (see `activations.activation_batches`); every head has its own
    seed in place of that of `train`. Heads of as many epochs are trained at once, up to `heads_at_once` (by default as
    many as memory allows).
    """
    assert train.augmentation is None, "stored activations are not augmented"
    lots = _lots(settings, heads_at_once or count_at_once(shape, train.batch_size, train.device))
    steps = sum(settings[lot[0]].stored_epochs for lot in lots) * len(train)
    ticks = track(range(steps), f"training {len(settings)} heads", steps, "steps")
    results: dict[int, TrainedHead] = {}
    for lot in lots:
        chosen = [settings[index] for index in lot]
        stack = StackedHeads(shape, [(one.seed, one.dropout) for one in chosen], train.device)
        trained = _train_lot(stack, chosen, train, valid, shared, lambda: next(ticks))
        for head, (index, epochs) in enumerate(zip(lot, trained, strict=True)):
            results[index] = _result(*epochs, shared.options, stack.state(head) if keep_states else {})
    for _ in ticks:
        pass
    return [results[index] for index in range(len(settings))]


def count_at_once(shape: HeadShape, batch_size: int, device: torch.device) -> int:
    """How many heads memory allows at once."""
    free = GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_BYTES
    return max(int(free) // bytes_per_head(shape, batch_size), 1)


def for_seeds(batches: Batches, seeds: Sequence[int]) -> list[Batches]:
    """The same batches in the order of each seed."""
    return [replace(batches, seed=seed) for seed in seeds]


def epoch_of(by_seed: Sequence[Batches], epoch: int) -> Iterator[Batch]:
    """The (inputs, targets, weights) that a head of each seed trains on in one epoch, from batches of the same stored
    rows: (pictures, seeds, activations), (pictures, seeds) or, where labels are soft, (pictures, seeds, classes), and
    (pictures, seeds), or None if all pictures count alike. All seeds have as many batches as the one with the fewest.
    """
    first, steps = by_seed[0], min(map(len, by_seed))
    order = np.stack([_rows(one, epoch)[:steps] for one in by_seed], axis=-1)
    targets = to_device(torch.from_numpy(first.labels[order]), first.device)
    weights = None if first.weights is None else to_device(torch.from_numpy(first.weights[order]), first.device)
    for step, rows in enumerate(order):
        inputs = first.fetch(rows.ravel())
        yield inputs.view(*rows.shape, -1), targets[step], None if weights is None else weights[step]


def losses_of(
    logits: Tensor, targets: Tensor, smoothing: Tensor | None = None, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(the loss to minimise, the plain cross-entropy, the weighted one) by head, for `logits` (pictures, heads,
    classes) and `targets` (pictures, heads), or the classes' shares, shaped as the logits. The first and the last are
    means by the `weights` (pictures, heads) of the pictures, and the first has its labels smoothed by the head's
    `smoothing`, as in `F.cross_entropy`."""
    logs = logits.log_softmax(-1)
    if targets.ndim == logs.ndim:
        of_targets = -(targets * logs).sum(-1)
    else:
        of_targets = -logs.gather(-1, targets[..., None]).squeeze(-1)
    descended = of_targets if smoothing is None else (1 - smoothing) * of_targets - smoothing * logs.mean(2)
    plain = of_targets.detach().mean(0)
    if weights is None:
        return descended.mean(0), plain, plain
    shares = weights / weights.sum(0)
    return (shares * descended).sum(0), plain, (shares * of_targets.detach()).sum(0)


def _lots(settings: Sequence[HeadSetting], heads_at_once: int) -> list[list[int]]:
    """The indices of the heads that are trained at once: of as many epochs, and those that share seed and dropout next
    to one another."""

    def epochs(index: int) -> int:
        return settings[index].stored_epochs

    order = sorted(
        range(len(settings)), key=lambda index: (epochs(index), settings[index].seed, settings[index].dropout)
    )
    lots = []
    for _, members in groupby(order, epochs):
        chosen = list(members)
        lots += [chosen[start : start + heads_at_once] for start in range(0, len(chosen), heads_at_once)]
    return lots


def train_stack(
    stack: StackedHeads,
    settings: Sequence[HeadSetting],
    by_seed: Sequence[Batches],
    shared: SharedSettings,
    tick: Callable[[], object],
    average: MovingAverage | None = None,
) -> Iterator[list[float]]:
    """Train the heads of the stack, each by its setting and on the batches of its seed; after each step they enter the
    `average`, and `tick` is called. Gives, after each epoch, the mean batch loss of each head."""
    rates, decays = [one.lr for one in settings], [one.weight_decay for one in settings]
    optimizer = build_stacked_optimizer(list(stack.parameters.values()), rates, decays, shared.options)
    smoothed = [one.label_smoothing for one in settings]
    device, epochs, steps = by_seed[0].device, settings[0].stored_epochs, min(map(len, by_seed))
    smoothing = torch.tensor(smoothed, device=device) if any(smoothed) else None
    generators = [torch.Generator(device) for _ in stack.groups]
    for epoch in range(epochs):
        for group, generator in zip(stack.groups, generators, strict=True):
            generator.manual_seed(seed_for(stack.seeds[group.seed] + 1, epoch))
        losses = []
        for step, batch in enumerate(epoch_of(by_seed, epoch), epoch * steps):
            losses.append(descend(stack, batch, generators, smoothing, shared.options).plain)
            optimizer.step(rate_factor(step, [epochs], steps, shared.warm_up))
            if average is not None:
                average.update()
            tick()
        yield torch.stack(losses).mean(0).tolist()


def _train_lot(
    stack: StackedHeads,
    settings: Sequence[HeadSetting],
    train: Batches,
    valid: Batches,
    shared: SharedSettings,
    tick: Callable[[], object],
) -> list[tuple[list[float], list[Validated]]]:
    """(losses, results in validation) by epoch of each head of the stack."""
    mean_losses, validated = [], []
    average = None
    if shared.options.keep == "moving_average":
        average = MovingAverage(stack.parameters | stack.statistics, shared.options.average_decay)
    for losses in train_stack(stack, settings, for_seeds(train, stack.seeds), shared, tick, average):
        mean_losses.append(losses)
        validated.append(validate_heads(stack, valid))
    if average is not None:
        average.take_over()
        validated[-1] = validate_heads(stack, valid)
    by_head = zip(zip(*mean_losses, strict=True), zip(*validated, strict=True), strict=True)
    return [(list(losses), list(results)) for losses, results in by_head]


def descend(
    stack: StackedHeads,
    batch: Batch,
    generators: Sequence[torch.Generator],
    smoothing: Tensor | None,
    options: TrainingOptions,
) -> StepLoss:
    """Give each head its gradients on a batch, which it goes through in parts as in `step.train_step`; gives the losses
    by head."""
    inputs, targets, weights = batch[0], batch[1][:, stack.seed_of], batch[2]
    weights = None if weights is None else weights[:, stack.seed_of]
    count = len(inputs)
    parts = max(1, min(options.accumulate, count // 2))
    of_weights = [None] * parts if weights is None else weights.tensor_split(parts)
    plain = torch.zeros(len(stack), device=inputs.device)
    weighted = torch.zeros_like(plain)
    for part in zip(inputs.tensor_split(parts), targets.tensor_split(parts), of_weights, strict=True):
        logits = stack.train(part[0], generators)
        loss, of_part, weighted_of_part = losses_of(logits, part[1], smoothing, part[2])
        share = len(logits) / count
        share_by_weights = share if weights is None or part[2] is None else part[2].sum(0) / weights.sum(0)
        (loss * share_by_weights).sum().backward()  # type: ignore[no-untyped-call]
        plain += of_part * share
        weighted += weighted_of_part * share_by_weights
    if options.clip_norm:
        clip_each(list(stack.parameters.values()), options.clip_norm)
    return StepLoss(plain, weighted)


def _result(
    losses: list[float], validated: list[Validated], options: TrainingOptions, state: dict[str, Tensor]
) -> TrainedHead:
    """A head's result from those of all its epochs: as if it had ended at an early stop."""
    results = [(one.loss, one.accuracy) for one in validated]
    ends = (number for number in range(1, len(results)) if stops_early(results[:number], options.early_stop_epochs))
    epochs = next(ends, len(results))
    numbers = [*losses[:epochs], *(one.loss for one in validated[:epochs])]
    keeps_best = options.keep in ("best_loss", "best_accuracy")
    kept = best_index(results[:epochs], options.keep) if keeps_best else epochs - 1
    return TrainedHead(losses[:epochs], validated[:epochs], kept, not bool(np.isfinite(numbers).all()), state)


@torch.no_grad()
def validate_heads(stack: StackedHeads, batches: Batches) -> list[Validated]:
    """The result of `fit.validate` for each head."""
    loss: Tensor | float = 0.0
    right: Tensor | int = 0
    named: Tensor | int = 0
    for inputs, targets in batches.epoch(0):
        logits = stack.validate(inputs)
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
    """For each head the number of pictures of each class, among those marked in `which`: (heads, classes)."""
    counts = torch.zeros((of_class.shape[1], classes), dtype=torch.int64, device=of_class.device)
    return counts.scatter_add_(1, of_class.T, which.T.long())


def _rows(batches: Batches, epoch: int) -> npt.NDArray[np.int64]:
    """The rows of each batch of an epoch: (batches, pictures)."""
    of_rows = replace(batches, fetch=torch.from_numpy, device=CPU, workers=0)
    return np.stack([rows.numpy() for rows, _ in of_rows.epoch(epoch)])
