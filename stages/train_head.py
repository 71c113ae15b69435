"""train_head: the head, and the late group if thawed; first on stored activations, then with augmentation on."""

from pipeline.recipe.schema import Recipe
from pipeline.runs.runner import run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.later import later
from pipeline.tracking import RunRef
from pipeline.training.schedule import thawed_rates
from stages.registry import STAGES


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Train a new head on the activations of the upstream run."""
    stage, settings = STAGES["train_head"], recipe.train_head
    up = Upstream.of(stage, recipe, upstream)
    rates = thawed_rates(up.rate(settings.lr, "train_head.lr"), settings.lr_ratio, settings.freeze)
    return run_stage(stage, up, {}, later("stages.work.train_head.work", up, rates))
