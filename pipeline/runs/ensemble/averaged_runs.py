"""The runs whose networks an evaluation averages, which have to be for the same pictures."""

from collections.abc import Sequence

from pipeline.cache.hashing import content_key
from pipeline.models.facts import Checkpoint, read_facts
from pipeline.recipe.schema import Recipe
from pipeline.runs.stage import Stage
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError


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


def _inputs(up: Upstream) -> Checkpoint:
    """How the network takes pictures, and for which classes."""
    facts = read_facts(up.folder("checkpoint", up.chain[0].stage))
    return Checkpoint("", facts.classes, 0, 0.0, 0, facts.fit, facts.grey, ranges=facts.ranges)
