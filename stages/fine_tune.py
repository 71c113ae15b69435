"""fine_tune: all layers, each group at its own rate, in cosine cycles with warm restarts."""

from collections.abc import Callable

from pipeline.recipe.schema import Recipe
from pipeline.runs.runner import run_stage
from pipeline.runs.stage import ignore_epoch
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from pipeline.system.later import later
from pipeline.tracking import RunRef
from pipeline.training.records import EpochRecord
from pipeline.training.schedule import group_rates
from stages.registry import STAGES, TRAINING


def run(recipe: Recipe, upstream: str | None, after_epoch: Callable[[EpochRecord], None] = ignore_epoch) -> RunRef:
    """Unfreeze the upstream run's network and train it on at the same image size."""
    stage, settings = STAGES["fine_tune"], recipe.fine_tune
    up = Upstream.of(stage, recipe, upstream)
    up.nearest(*TRAINING)
    if not settings.cycles:
        raise UserError("fine_tune.cycles is 0, so that nothing is trained; set it to 1 or more.")
    rates = group_rates(up.rate(settings.lr, "fine_tune.lr"), settings.lr_ratio)
    return run_stage(stage, up, {}, later("pipeline.runs.train.train_unfrozen", up, settings, rates), after_epoch)
