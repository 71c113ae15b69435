"""sweep: many trials of the recipe; the best is trained over several seeds, judged on the test split, and registered."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.command import main
from pipeline.contract import RunRef, Stage
from pipeline.recipe import Recipe
from stages import evaluate
from stages.main import train
from stages.precompute import list_pictures

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

    from pipeline.sweep.space import Value

STAGE = Stage(
    "sweep",
    (),
    short_for={"trials": "sweep.trials", "workers": "sweep.workers", "storage": "sweep.storage"},
)
UNFROZEN = ("fine_tune", "resize")
SECONDS_BETWEEN_LOOKS = 1.0


def run(recipe: Recipe, upstream: str | None = None) -> RunRef:
    """Lead the study of this recipe, or, where another machine does, run trials of it."""
    from pipeline import tracking
    from pipeline.sweep.lease import Lease
    from pipeline.sweep.space import check_space
    from pipeline.sweep.study import MISSED_HEARTBEATS, open_storage, open_study, storage_url, study_name

    check_space(recipe)
    tracking.meet_server()
    sweep, url = recipe.sweep, storage_url(recipe.sweep.storage)
    manifest = list_pictures(recipe)
    name = study_name(sweep.name, recipe, manifest.digest)
    study = open_study(open_storage(url, sweep.heartbeat_seconds, make_tables=True), name, objectives_of(recipe))
    lease = Lease(study, MISSED_HEARTBEATS * sweep.heartbeat_seconds)
    if not lease.take():
        return join(recipe, study, lease, url)
    return lead(recipe, study, lease, url, Path(recipe.data.source).stem)
