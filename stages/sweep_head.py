"""sweep_head: hundreds of heads at once on stored activations; which setting is best, and whether by chance."""

from pipeline.recipe.schema import Recipe
from pipeline.runs.runner import run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.later import later
from pipeline.tracking import RunRef
from stages.registry import STAGES


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Compare settings of the head on the activations of the upstream run."""
    up = Upstream.of(STAGES["sweep_head"], recipe, upstream)
    return run_stage(STAGES["sweep_head"], up, {}, later("stages.work.sweep_head.work", up))
