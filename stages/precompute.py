"""precompute: one pass of the frozen layer groups over every picture; their activations are stored once."""

from dataclasses import replace

from pipeline.recipe.schema import Recipe
from pipeline.runs.recipe_pictures import Inputs, gather_inputs
from pipeline.runs.runner import run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.later import later
from pipeline.tracking import RunRef
from stages.registry import STAGES


def run(recipe: Recipe, upstream: str | None = None, given: Inputs | None = None) -> RunRef:
    """Store the activations of the pictures, which are listed, inspected and split first, unless they are `given`."""
    given = given or gather_inputs(recipe)
    stage, manifest, weights, backbone = STAGES["precompute"], given.manifest, given.weights, recipe.model.backbone
    inputs = {"manifest": manifest.digest, "fit": recipe.data.fit, "backbone": backbone, "weights": weights.identity}
    inputs |= {"ranges": str(manifest.ranges)} if manifest.ranges else {}
    if recipe.precompute.views:  # only then does the result depend on how pictures are varied
        stage = replace(stage, sections=("precompute", "augment"), artifacts=(*stage.artifacts, "views"))
    return run_stage(
        stage, Upstream(recipe), inputs, later("stages.work.precompute.work", Upstream(recipe), manifest, weights)
    )
