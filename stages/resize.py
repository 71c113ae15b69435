"""resize: the same network goes on at a larger image size, or at several, frozen as deep as the recipe says."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.recipe.schema import Recipe, resize_steps
from pipeline.runs.runner import run_stage
from pipeline.runs.stage import ignore_epoch, step_name
from pipeline.runs.upstream import TOP_RATE, Upstream, suggested
from pipeline.system.errors import UserError
from pipeline.system.later import later
from pipeline.tracking import RunRef
from pipeline.training.records import EpochRecord
from pipeline.training.schedule import group_rates
from stages.registry import STAGES, TRAINING


def run(recipe: Recipe, upstream: str | None, after_epoch: Callable[[EpochRecord], None] = ignore_epoch) -> RunRef:
    """Train the upstream run's network on at the image size of the recipe's next step; "auto" is the head's top rate
    there, or, after lr_find, its suggestion. The next step of a list is the first that has no run upstream."""
    up = Upstream.of(STAGES["resize"], recipe, upstream)
    trained, steps = up.nearest(*TRAINING), resize_steps(recipe)
    done = sum(ref.stage == "resize" for ref in up.chain)
    if not steps or (isinstance(recipe.resize, list) and done >= len(steps)):
        raise UserError(
            f"resize has {len(steps)} steps of 1 cycle or more, of which the upstream run {upstream} stands on "
            f"{done}, so that nothing is left to train; add a step, or set its cycles to 1 or more."
        )
    settings = steps[min(done, len(steps) - 1)]
    lr = settings.lr
    if lr == "auto":
        lr = suggested(up.chain[0]) if up.chain[0].stage == "lr_find" else trained.metrics[TOP_RATE]
    rates = group_rates(lr, settings.lr_ratio)
    work = later(
        "pipeline.runs.train.train_unfrozen", up, settings, rates, frozen=settings.freeze, image_px=settings.image_px
    )
    stage = replace(STAGES["resize"], title=step_name("resize", done + 1))
    return run_stage(stage, up, {}, work, after_epoch, {"resize": settings})
