"""Many heads trained and validated in one pass over stored activations, each with its own seed, rate and decay."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import AdamW

from pipeline.data.batches import Batches, seed_for
from pipeline.system.console import track
from pipeline.system.device import to_device
from pipeline.training.fit import Validated
from pipeline.training.heads.stacked_heads import HeadShape, StackedHeads, bytes_per_head
from pipeline.training.optim import BETAS
from pipeline.training.schedule import rate_factor

# The memory that heads trained at once may take: on a CPU so many bytes, since more does not fit its caches and is
# slower; on a GPU a share of its free memory.
CPU_BYTES = 2**27
GPU_SHARE = 0.4
CPU = torch.device("cpu")


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
class TrainedHead:
    """The mean batch loss in training and the results in validation, by epoch, as in `fit.EpochRecord`. A head has
    `diverged` if one of these is no number. `state` is that of `build_head` at the end, if it was asked for."""

    train_losses: list[float]
    valid: list[Validated]
    diverged: bool
    state: dict[str, Tensor] = field(repr=False)


def train_heads(
    settings: Sequence[HeadSetting],
    shape: HeadShape,
    train: Batches,
    valid: Batches,
    *,
    heads_at_once: int | None = None,
    keep_states: bool = False,
) -> list[TrainedHead]:
    """The result of each of `settings`, in their order.

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
        trained = _train_lot(stack, chosen, train, valid, lambda: next(ticks))
        for head, (index, (losses, validated)) in enumerate(zip(lot, trained, strict=True)):
            numbers = [*losses, *(one.loss for one in validated)]
            state = stack.state(head) if keep_states else {}
            results[index] = TrainedHead(losses, validated, not bool(np.isfinite(numbers).all()), state)
    for _ in ticks:
        pass
    return [results[index] for index in range(len(settings))]


def count_at_once(shape: HeadShape, batch_size: int, device: torch.device) -> int:
    """How many heads memory allows at once."""
    free = GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_BYTES
    return max(int(free) // bytes_per_head(shape, batch_size), 1)


def epoch_of(seeds: Sequence[int], batches: Batches, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The (inputs, targets) that a head of each seed trains on in one epoch: (pictures, seeds, activations), and
    (pictures, seeds) or, where labels are soft, (pictures, seeds, classes)."""
    order = np.stack([_rows(replace(batches, seed=seed), epoch) for seed in seeds], axis=-1)
    targets = to_device(torch.from_numpy(batches.labels[order]), batches.device)
    for step, rows in enumerate(order):
        inputs = batches.fetch(rows.ravel())
        yield inputs.view(*rows.shape, -1), targets[step]


def losses_of(logits: Tensor, targets: Tensor, smoothing: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(the loss to minimise, the cross-entropy) by head, for `logits` (pictures, heads, classes) and `targets`
    (pictures, heads), or the classes' shares, shaped as the logits; with `smoothing` by head, the first has its labels
    smoothed as in `F.cross_entropy`."""
    logs = logits.log_softmax(-1)
    if targets.ndim == logs.ndim:
        of_targets = (targets * logs).sum(-1)
    else:
        of_targets = logs.gather(-1, targets[..., None]).squeeze(-1)
    plain = -of_targets.mean(0)
    if smoothing is None:
        return plain, plain.detach()
    return (1 - smoothing) * plain - smoothing * logs.mean((0, 2)), plain.detach()


class StackedAdamW:
    """AdamW for parameters whose first dimension is the head, with `rates` and `decays` by head.

    torch's fused step takes one rate for all parameters. So it computes `steps` at the rate 1, with a decay of 1 that
    erases the step before, and each head is moved by its step times its own rate. Norms and biases do not decay, as in
    `optim.build_optimizer`.
    """

    def __init__(self, parameters: Sequence[Tensor], rates: Sequence[float], decays: Sequence[float]) -> None:
        self.parameters = list(parameters)
        like = self.parameters[0]
        self.rates = torch.tensor(rates, dtype=like.dtype, device=like.device)
        self.decays = torch.tensor(decays, dtype=like.dtype, device=like.device)
        self.steps = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._direction = AdamW(self.steps, lr=1.0, betas=BETAS, weight_decay=1.0, fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move every head along its gradient at its rate × `factor`, and clear the gradients."""
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            step.grad, parameter.grad = parameter.grad, None
        self._direction.step()
        rates = self.rates * factor
        kept = 1 - rates * self.decays
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            by_head = (-1, *[1] * (parameter.ndim - 1))
            if parameter.ndim > 2:  # a head's matrix; its norms and biases are vectors
                parameter.mul_(kept.view(by_head))
            parameter.addcmul_(step, rates.view(by_head))
            step.grad = None


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


def _train_lot(
    stack: StackedHeads,
    settings: Sequence[HeadSetting],
    train: Batches,
    valid: Batches,
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
    epochs = settings[0].stored_epochs
    for epoch in range(epochs):
        for group, generator in zip(stack.groups, generators, strict=True):
            generator.manual_seed(seed_for(stack.seeds[group.seed] + 1, epoch))
        losses = []
        for step, (inputs, targets) in enumerate(epoch_of(stack.seeds, train, epoch), epoch * len(train)):
            logits = stack.train(inputs, generators)
            descended, plain = losses_of(logits, targets[:, stack.seed_of], smoothing)
            descended.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step(rate_factor(step, [epochs], len(train)))
            losses.append(plain)
            tick()
        mean_losses.append(torch.stack(losses).mean(0).tolist())
        validated.append(validate_heads(stack, valid))
    by_head = zip(zip(*mean_losses, strict=True), zip(*validated, strict=True), strict=True)
    return [(list(losses), list(results)) for losses, results in by_head]


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
