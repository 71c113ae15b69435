"""lr_find: a range test of what trains next; after precompute of the layer groups that train_head trains, on stored
activations; else of those that fine_tune trains, or where that is done or left out, resize."""

from dataclasses import replace

from pipeline.recipe.schema import Recipe, frozen_in, trained_next
from pipeline.runs.runner import run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.later import later
from pipeline.tracking import RunRef
from stages.registry import STAGES

# Keys of the stage that trains next which decide what is tested, beside what it freezes.
TESTED = ("fraction", "batch_size", "lr_ratio", "batchnorm", "weight_decay", "label_smoothing", "drop_path", "image_px")


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Find a rate for the stage that trains next on the upstream run."""
    stage = STAGES["lr_find"]
    up = Upstream.of(stage, recipe, upstream)
    tested = trained_next(recipe, [ref.stage for ref in up.chain])
    inputs = {name: getattr(tested, name) for name in TESTED if hasattr(tested, name)} | {"freeze": frozen_in(tested)}
    if up.chain[0].stage == "precompute":
        stage = replace(stage, sections=("training", "lr_find", "head"))
    else:
        stage = replace(stage, sections=("training", "lr_find", "augment"), title="lr_find (unfrozen)")
    return run_stage(stage, up, inputs, later("stages.work.lr_find.work", up))
