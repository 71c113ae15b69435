"""main: the whole recipe, every stage as a run nested in one; finished stages are reused."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.command import main
from pipeline.contract import RunRef, Stage
from pipeline.recipe import Recipe
from stages import evaluate, fine_tune, lr_find, precompute, resize, train_head

STAGE = Stage("main", ())

CHAIN: tuple[tuple[str, Callable[[Recipe, str | None], RunRef]], ...] = (
    ("precompute", precompute.run),
    ("lr_find", lr_find.run),
    ("train_head", train_head.run),
    ("lr_find_unfrozen", lr_find.run),
    ("fine_tune", fine_tune.run),
    ("resize", resize.run),
    ("evaluate", evaluate.run),
)


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Each stage on the run of the one before it; the parent run ends with the final figures."""
    from pipeline import tracking
    from pipeline.provenance import git_tags
    from pipeline.recipe import training_settings
    from pipeline.summary import CURVES, log_summary

    started = time.perf_counter()
    with tracking.open_run(STAGE.name, {tracking.STAGE: STAGE.name, **git_tags()}, training_settings(recipe)) as run_id:
        done: dict[str, RunRef] = {}
        latest = None
        for name, stage in CHAIN:
            done[name] = stage(recipe, latest)
            latest = done[name].run_id
            tracking.copy_curves(latest, run_id, CURVES)
        tracking.show_result(done["evaluate"].run_id, run_id, ["report.html"])
        log_summary(run_id, Path(recipe.data.source).stem, done)
        return tracking.mark_done(run_id, time.perf_counter() - started)


if __name__ == "__main__":
    main(STAGE, __doc__, run)
