"""resize: the same network goes on at a larger image size, frozen as deep as the recipe says."""

from collections.abc import Callable
from functools import partial

from pipeline.recipe.schema import Recipe
from pipeline.runs.runner import ignore_epoch, run_stage
from pipeline.runs.train import train_unfrozen
from pipeline.runs.upstream import TOP_RATE, Upstream, suggested
from pipeline.tracking import RunRef
from pipeline.training.fit import EpochRecord
from pipeline.training.schedule import group_rates
from stages.registry import STAGES, TRAINING


def run(recipe: Recipe, upstream: str | None, after_epoch: Callable[[EpochRecord], None] = ignore_epoch) -> RunRef:
    """Train the upstream run's network on at `resize.image_px`; "auto" is the head's top rate there, or, after
    lr_find, its suggestion."""
    stage, settings = STAGES["resize"], recipe.resize
    up = Upstream.of(stage, recipe, upstream)
    trained, lr = up.nearest(*TRAINING), settings.lr
    if lr == "auto":
        lr = suggested(up.chain[0]) if up.chain[0].stage == "lr_find" else trained.metrics[TOP_RATE]
    rates = group_rates(lr, settings.lr_ratio)
    work = partial(train_unfrozen, up, settings, rates, frozen=settings.freeze, image_px=settings.image_px)
    return run_stage(stage, up, {}, work, after_epoch)
