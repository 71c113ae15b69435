"""What a helper computes with while the leader goes through frozen passes: opened once for all calls of a pass."""

from dataclasses import dataclass

from pipeline.data.decode import Pixels
from pipeline.models.checkpoint import build_network
from pipeline.models.cut import Halves, cut_network
from pipeline.models.engine.passes import Frozen, frozen_below, frozen_network
from pipeline.models.engine.spread import Work, held_key, hold
from pipeline.models.network import Network
from pipeline.ranks.exchange import receive_tensors
from pipeline.system.device import choose_device


@dataclass(frozen=True)
class Opened:
    """The pixels, the network, and what computes the frozen pass: `halves` up to a cut, or else the whole, `frozen`."""

    pixels: Pixels
    network: Network
    halves: Halves | None = None
    frozen: Frozen | None = None


_opened: list[Opened] = []


def opened(work: Work) -> Opened:
    """What `Spread.provide` of the leader gives, or has given before."""
    if held_key() != work.key:
        hold(work.key)
        _opened[:] = [_open(work)]
    return _opened[0]


def forget() -> None:
    """Let go of what was opened, for the memory that it takes; all processes call it."""
    hold("")
    _opened.clear()


def _open(work: Work) -> Opened:
    pixels, network = work.source.open(), build_network(work.checkpoint)
    network.load_state_dict(receive_tensors())
    network.move_to(choose_device(work.device), work.passes * work.checkpoint.image_px**2).eval()
    if work.cut is None:
        frozen = frozen_network(network, work.checkpoint, pixels, work.passes)
        return Opened(pixels, network, frozen=frozen)
    halves = cut_network(network, work.cut, work.checkpoint.image_px)
    return Opened(pixels, network, frozen_below(network, work.checkpoint, halves, pixels, work.passes))
