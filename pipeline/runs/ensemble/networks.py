"""The networks that an evaluation averages: those of its upstream runs, opened one after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from pipeline import tracking
from pipeline.data.decode import Pixels
from pipeline.evaluation.ensembles.members import Member
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.engine.passes import frozen_network
from pipeline.models.facts import read_facts
from pipeline.models.network import Network
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import pixels_of

SHORT_ID = 8


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A network that is evaluated: its `name`, the `folder` of its checkpoint, and the manifest's pictures at its
    size, as `pixels`."""

    name: str
    folder: Path
    pixels: Pixels

    def load(self, device: torch.device) -> tuple[Network, Member]:
        """The network on `device`, and what computes its predictions."""
        network, checkpoint = load_checkpoint(self.folder)
        network.move_to(device, len(self.pixels) * checkpoint.image_px**2)
        frozen = frozen_network(network, checkpoint, self.pixels, len(self.pixels))
        return network, Member(self.name, frozen, self.pixels)


def open_networks(upstreams: Sequence[Upstream], run_id: str) -> list[EvaluatedNetwork]:
    """The networks of these runs, for the open run `run_id`; those of one size share their pixels."""
    by_size: dict[int, Pixels] = {}
    found = []
    for up in upstreams:
        folder = up.folder("checkpoint", up.chain[0].stage)
        facts = read_facts(folder)
        if facts.image_px not in by_size:
            by_size[facts.image_px] = pixels_of(upstreams[0], run_id, facts)
        found.append(EvaluatedNetwork(_name(up), folder, by_size[facts.image_px]))
    return found


def load_members(networks: Sequence[EvaluatedNetwork], device: torch.device) -> tuple[Network, Iterator[Member]]:
    """(The first network, all of them as members, each loaded when its turn comes)."""
    first, *others = networks
    network, member = first.load(device)
    return network, chain([member], (one.load(device)[1] for one in others))


def _name(up: Upstream) -> str:
    """Such as "resize, seed 2 (1a2b3c4d)"."""
    ref = up.chain[0]
    return f"{ref.stage}, seed {tracking.read_params(ref.run_id)['seed']} ({ref.run_id[:SHORT_ID]})"
