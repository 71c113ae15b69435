"""The networks that an evaluation averages: those of its upstream runs, which have to be for the same pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from pipeline import tracking
from pipeline.cache.hashing import content_key
from pipeline.data.decode import Pixels
from pipeline.evaluation.ensembles.members import Member
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.engine.passes import frozen_network
from pipeline.models.facts import Checkpoint, read_facts
from pipeline.models.network import Network
from pipeline.recipe.schema import Recipe
from pipeline.runs.stage import Stage
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError

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
        network.to(device)
        frozen = frozen_network(network, checkpoint, self.pixels, len(self.pixels))
        return network, Member(self.name, frozen, self.pixels)


def read_upstreams(stage: Stage, recipe: Recipe, run_ids: str | None) -> list[Upstream]:
    """What each of the runs `run_ids`, with commas between them, gives to `stage`.

    UserError if one of them is none that it can follow, is there twice, or is of other pictures or another split.
    """
    ids = [one.strip() for one in run_ids.split(",")] if run_ids else [None]
    upstreams = [Upstream.of(stage, recipe, one) for one in ids]
    first, *others = upstreams
    seen = [first.chain[0].run_id]
    for up in others:
        run_id, precompute = up.chain[0].run_id, up.nearest("precompute").run_id
        if run_id in seen:
            raise UserError(f"upstream names run {run_id} twice; give each run once.")
        seen.append(run_id)
        is_same = precompute == first.nearest("precompute").run_id or up.manifest.digest == first.manifest.digest
        if not is_same or _inputs(up) != _inputs(first):
            raise UserError(
                f"The network of run {run_id} is for other pictures than that of run {seen[0]}, splits or ranges "
                "included, so that the two cannot be averaged; give runs of the same data and data.split_seed."
            )
    return upstreams


def ensemble_inputs(upstreams: Sequence[Upstream]) -> dict[str, str]:
    """What an evaluation depends on beside the first of its upstream runs; nothing where there is one."""
    others = [{"fingerprint": up.chain[0].fingerprint, "resolved": up.chain[0].resolved} for up in upstreams[1:]]
    return {"ensemble": content_key({"others": others})} if others else {}


def open_networks(upstreams: Sequence[Upstream], run_id: str) -> list[EvaluatedNetwork]:
    """The networks of these runs, for the open run `run_id`; those of one size share their pixels."""
    by_size: dict[int, Pixels] = {}
    found = []
    for up in upstreams:
        folder = up.folder("checkpoint", up.chain[0].stage)
        facts = read_facts(folder)
        if facts.image_px not in by_size:
            by_size[facts.image_px] = upstreams[0].pixels(run_id, facts)
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


def _inputs(up: Upstream) -> Checkpoint:
    """How the network takes pictures, and for which classes."""
    facts = read_facts(up.folder("checkpoint", up.chain[0].stage))
    return Checkpoint("", facts.classes, 0, 0.0, 0, facts.fit, facts.grey, ranges=facts.ranges)
