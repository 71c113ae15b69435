"""What helpers run while the leader trains: the same steps on their shares, from the same state, without a record."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from torch import nn

from pipeline.models.engine.helpers import forget
from pipeline.models.network import Network
from pipeline.ranks.exchange import of_leader, receive_tensors, send_tensors
from pipeline.ranks.team import check_all, together
from pipeline.recipe.schema import LrFind
from pipeline.training.fit import Phase, TrainingProgress, fit
from pipeline.training.joint.pictures import Origin
from pipeline.training.lr_finder import Curve, range_test
from pipeline.training.records import EpochRecord
from pipeline.training.resume import restore, tensors_of

Moments: TypeAlias = Iterator[EpochRecord | TrainingProgress]


@contextmanager
def helped(
    network: Network, phase: Phase, start: TrainingProgress, before: tuple[int, int]
) -> Iterator[Callable[[Moments], Moments]]:
    """Within the block helpers train the phase from the `start` on, with these epochs and steps `before` it, as the
    leader does; gives a function that keeps them in step with what the leader takes of `fit`. They stop where it does
    after an epoch; where it stops within one, the command has to end."""
    if not phase.train.deal.is_shared:
        yield lambda moments: moments
        return
    with together(train_share, phase.origin, start, before):
        _send(network, phase)
        running: list[Moments] = []

        def in_step(moments: Moments) -> Moments:
            running.append(_in_step(moments))
            return running[0]

        try:
            yield in_step
        finally:
            for one in running:
                one.close()  # type: ignore[attr-defined]


def train_share(origin: Origin, start: TrainingProgress, before: tuple[int, int]) -> None:
    """A helper's part of a phase."""
    _, phase = _receive(origin)
    for moment in fit(phase, *before, start):
        if isinstance(moment, EpochRecord) and not of_leader(0):
            return


def find_together(network: Network, phase: Phase, settings: LrFind) -> Curve:
    """The range test of the network on the phase's training batches, of which every process takes its share."""
    if not phase.train.deal.is_shared:
        return _find(phase, settings)
    with together(find_share, phase.origin, settings):
        _send(network, phase)
        return _find(phase, settings)


def find_share(origin: Origin, settings: LrFind) -> None:
    """A helper's part of a range test."""
    _find(_receive(origin)[1], settings)


def _find(phase: Phase, settings: LrFind) -> Curve:
    tested = phase.module, phase.optimizer, phase.train
    return range_test(*tested, settings, phase.fixed_statistics, phase.options, phase.label_smoothing)


def _send(network: nn.Module, phase: Phase) -> None:
    forget()
    phase.origin.source.open()
    send_tensors(tensors_of(network, phase.optimizer))


def _receive(origin: Origin) -> tuple[Network, Phase]:
    forget()
    network, phase = origin.build()
    restore(network, phase.optimizer, receive_tensors())
    return network, phase


def _in_step(moments: Moments) -> Moments:
    """The same moments; after each epoch that is followed by another, or by the end, the helpers go on."""
    moment: EpochRecord | TrainingProgress | None = None
    try:
        for moment in moments:
            check_all()  # before anything is saved
            yield moment
            if isinstance(moment, EpochRecord):
                of_leader(1)
    except GeneratorExit:
        if isinstance(moment, EpochRecord):
            with suppress(RuntimeError):  # they may be gone
                of_leader(0)
        raise
