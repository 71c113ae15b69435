"""Which weights a stage keeps of its training: the last, those of the best epoch, or an average.

The mean of the weights at the end of each cycle is what restarts are for: Izmailov et al. 2018, "Averaging Weights
Leads to Wider Optima and Better Generalization"; Huang et al. 2017, "Snapshot Ensembles".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from torch import Tensor, nn

from pipeline.training.average import MovingAverage
from pipeline.training.fit import Phase, Validated, validate
from pipeline.training.records import EpochRecord
from pipeline.training.schedule import position_in_cycle

Keep: TypeAlias = Literal["last", "best_loss", "best_accuracy", "mean_of_cycles", "moving_average"]


@dataclass(frozen=True)
class Snapshot:
    """Weights that may be kept: a network's `state` by name, on the CPU, after these `epochs`, whose mean it is if
    there are several. Without epochs there is none, and the network's own weights are kept."""

    epochs: list[int] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A stage's training: the `records` of all epochs, the `kept_epochs` after which the network had the weights that
    it has in the end, whose mean they are if there are several, and how these are `validated`."""

    records: list[EpochRecord]
    kept_epochs: list[int]
    validated: Validated


def snapshot_after(
    before: Snapshot,
    phase: Phase,
    network: nn.Module,
    records: Sequence[EpochRecord],
    epochs_done: int,
    average: MovingAverage | None = None,
) -> Snapshot:
    """The weights to keep after the last of `records`, with which `epochs_done` epochs of `phase` are done; `before`
    are those that were kept until then, and `average` is that of the phase, if it has one."""
    keep, last = phase.options.keep, records[-1]
    if average is not None:
        return Snapshot([last.epoch], average.whole_state())
    if keep == "mean_of_cycles":
        return _mean_with(before, network, last.epoch) if ends_cycle(phase, epochs_done) else before
    if keep in ("best_loss", "best_accuracy") and best_epoch(records, keep) is last:
        return Snapshot([last.epoch], _state_of(network))
    return before


def ends_cycle(phase: Phase, epochs_done: int) -> bool:
    """Whether a cycle of `phase` ends with the last of the `epochs_done`."""
    _, within, length = position_in_cycle(epochs_done - 1, phase.cycle_epochs)
    return within == length - 1


def keep_snapshot(snapshot: Snapshot, phase: Phase, network: nn.Module, records: list[EpochRecord]) -> Trained:
    """Give the network the weights of `snapshot`; an average is validated on the batches of `phase`."""
    if snapshot.epochs:
        network.load_state_dict(snapshot.state)
    if len(snapshot.epochs) > 1 or phase.options.keep == "moving_average":
        return Trained(records, snapshot.epochs, validate(phase.module, phase.valid, phase.options.precision))
    kept = next((record for record in records if record.epoch in snapshot.epochs), records[-1])
    return Trained(records, [kept.epoch], Validated(kept.valid_loss, kept.valid_accuracy, kept.valid_macro_f1))


def best_epoch(records: Sequence[EpochRecord], keep: Keep) -> EpochRecord:
    """The record of the lowest validation loss, or of the highest accuracy; of equal ones the better in the other, then
    the first."""
    return records[best_index([(record.valid_loss, record.valid_accuracy) for record in records], keep)]


def best_index(results: Sequence[tuple[float, float]], keep: Keep) -> int:
    """The same for (validation loss, accuracy) by epoch: its index."""
    by_loss = [(loss, -accuracy) for loss, accuracy in results]
    by_accuracy = [(-accuracy, loss) for loss, accuracy in results]
    ranked = by_loss if keep == "best_loss" else by_accuracy
    return ranked.index(min(ranked))


def stops_early(results: Sequence[tuple[float, float]], patience_epochs: int) -> bool:
    """Whether a phase with these results ends here, since its validation loss has not fallen for so many epochs; 0 is
    never."""
    return bool(patience_epochs and results) and len(results) - best_index(results, "best_loss") > patience_epochs


def _mean_with(before: Snapshot, network: nn.Module, epoch: int) -> Snapshot:
    """The mean over one epoch more, statistics of BatchNorm included; counters are those of the last."""
    state = _state_of(network)
    share = 1 / (len(before.epochs) + 1)
    for name, mean in before.state.items():
        if mean.is_floating_point():
            state[name] = mean.lerp(state[name], share)
    return Snapshot([*before.epochs, epoch], state)


def _state_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in network.state_dict().items()}
