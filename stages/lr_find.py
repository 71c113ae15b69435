"""lr_find: a range test; after precompute of the layer groups that train_head trains, on stored activations; else of
the whole network."""

from dataclasses import replace

from pipeline.recipe.schema import Recipe
from pipeline.runs.runner import run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.later import later
from pipeline.tracking import RunRef
from stages.registry import STAGES


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Find a rate for the stage that trains next on the upstream run."""
    stage = STAGES["lr_find"]
    up = Upstream.of(stage, recipe, upstream)
    if up.chain[0].stage == "precompute":
        stage = replace(stage, sections=("training", "lr_find", "head"))
        inputs = {"freeze": recipe.train_head.freeze}  # what is trained next
    else:
        stage, inputs = replace(stage, sections=("training", "lr_find", "augment"), title="lr_find (unfrozen)"), {}
    return run_stage(stage, up, inputs, later("stages.work.lr_find.work", up))
