"""A frozen pass that several processes share: what a helper needs to compute the same, and who has it already."""

from dataclasses import dataclass
from uuid import uuid4

import torch

from pipeline.data.decode import Pixels
from pipeline.data.joint.shared_pixels import Source, source_of
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.cut import Cut
from pipeline.models.network import Network
from pipeline.ranks.exchange import send_tensors


@dataclass(frozen=True)
class Work:
    """A pass of `passes` pictures of `source` through the network of `checkpoint`, up to the `cut` if there is one, on
    this kind of `device`. Passes of the same `key` are of the same weights."""

    key: str
    checkpoint: Checkpoint
    cut: Cut | None
    source: Source
    passes: int
    device: str


@dataclass(frozen=True)
class Spread:
    """The leader's side of a pass: the `work`, and the `network` whose weights helpers get."""

    work: Work
    network: Network

    def provide(self) -> None:
        """Send pixels and weights to the helpers, unless they have them from the call before; they call `opened`."""
        if _held.key != self.work.key:
            _held.key = self.work.key
            self.work.source.open()
            send_tensors(self.network.state_dict())


class _Held:
    """The key of the work that helpers hold, as all processes know it."""

    key = ""


_held = _Held()


def spread(network: Network, checkpoint: Checkpoint, pixels: Pixels, passes: int, cut: Cut | None = None) -> Spread:
    """The pass of `pixels` through the network, as the leader shares it."""
    device: torch.device = network.mean.device
    return Spread(Work(uuid4().hex, checkpoint, cut, source_of(pixels), passes, device.type), network)


def held_key() -> str:
    """The key of the work that helpers hold."""
    return _held.key


def hold(key: str) -> None:
    """From now on helpers hold the work of this key; all processes call it, or none."""
    _held.key = key
