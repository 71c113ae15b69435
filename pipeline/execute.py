"""Runs a stage, or takes a finished run of it in its stead.

`tracking` is imported where it is used, so that all else here can be had where there is no mlflow.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console import duration, say
from pipeline.contract import Job, RunRef, Stage, go_on
from pipeline.disk import told_when_full
from pipeline.errors import Pruned, UserError
from pipeline.fingerprint import fingerprint, source_digest
from pipeline.provenance import git_tags
from pipeline.recipe import Recipe, flatten
from pipeline.recipe_file import write_recipe
from pipeline.store import cache_folder, locked

if TYPE_CHECKING:
    from pipeline.decode import Decoder, Fit, Pixels
    from pipeline.fit import EpochRecord
    from pipeline.manifest import Manifest

RECIPE_FILE = "recipe.yaml"
IN_HAND = "checkpoints"
SUGGESTED = "suggestion/lr"


def run_stage(
    stage: Stage,
    recipe: Recipe,
    chain: Sequence[RunRef],
    inputs: Mapping[str, str],
    work: Callable[[Job], None],
    after_epoch: "Callable[[EpochRecord], None]" = go_on,
) -> RunRef:
    """The finished run of `stage` for this recipe, these upstream runs (nearest first) and further `inputs`.

    Unless `recipe.reuse` says otherwise, a run with the same fingerprint is taken, after waiting for the process that
    is making it on this machine, if there is one. Else `work` is called with a run that is open and the folder of what
    an earlier run had in hand; the run is marked done as the last act, and the folder goes. `after_epoch` is the job's.
    """
    sections = {name: getattr(recipe, name).model_dump() for name in stage.sections}
    known = {"upstream": chain[0].fingerprint} if chain else {}
    print_ = fingerprint(stage.name, sections, recipe.seed, {**known, **inputs}, source_digest(f"stages.{stage.name}"))
    found = _find(stage, recipe.reuse, print_)
    if found is None:
        with _alone(stage, print_) as folder:
            found = _find(stage, recipe.reuse, print_)  # another process may have made it while this one waited
            if found is None:
                if recipe.reuse == "never":
                    shutil.rmtree(folder, ignore_errors=True)
                try:
                    done = _run(stage, recipe, chain, print_, Job("", folder, after_epoch), work)
                except Pruned:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                return done
    say(f"{stage.name}: reused run {found.run_id} (took {duration(found.seconds)})")
    point_mlflow_run_at(stage.name, found.run_id, "Nothing that it depends on has changed: reused")
    return found


def _run(
    stage: Stage, recipe: Recipe, chain: Sequence[RunRef], print_: str, job: Job, work: Callable[[Job], None]
) -> RunRef:
    from pipeline import tracking

    say(f"{stage.name}: started")
    started = time.perf_counter()
    tags = {tracking.STAGE: stage.name, tracking.FINGERPRINT: print_, **git_tags()}
    if chain:
        tags[tracking.UPSTREAM] = chain[0].run_id
    own = ("seed", *(f"{name}." for name in stage.sections))
    params = {key: value for key, value in flatten(recipe).items() if key.startswith(own)}
    with tracking.open_run(stage.title or stage.name, tags, params) as run_id:
        tracking.name_run(run_id, stage.title or stage.name)
        tracking.log_text(run_id, write_recipe(recipe), RECIPE_FILE)
        with told_when_full(f"what {stage.name} has made"):
            work(replace(job, run_id=run_id))
        done = tracking.mark_done(run_id, time.perf_counter() - started)
    say(f"{stage.name}: done in {duration(done.seconds)} (run {run_id})")
    return done


@contextmanager
def _alone(stage: Stage, print_: str) -> Iterator[Path]:
    """The folder of what is in hand for this fingerprint, while no other process on this machine works on it."""
    folder = cache_folder() / IN_HAND / print_
    with locked(folder, f"{stage.name}: another process is running this very stage; waiting for its result"):
        yield folder


def chain_of(stage: Stage, upstream: str | None) -> list[RunRef]:
    """The runs that `stage` builds on: the one with the id `upstream`, the one that that followed, and so on.

    Raises UserError if the first is of a stage that this one cannot follow.
    """
    from pipeline import tracking

    wanted = " or ".join(stage.follows)
    if upstream is None:
        raise UserError(f"{stage.name} needs an upstream run; give the id of a run of {wanted}: -P upstream=<run id>.")
    chain = [tracking.run_of(upstream)]
    if chain[0].stage not in stage.follows:
        raise UserError(
            f"{stage.name} cannot follow run {upstream}, which is a run of {chain[0].stage}; "
            f"give the id of a run of {wanted}."
        )
    while chain[-1].upstream is not None:
        chain.append(tracking.run_of(chain[-1].upstream))
    return chain


def nearest(chain: Sequence[RunRef], *stages: str) -> RunRef:
    """The nearest upstream run of one of `stages`; UserError if there is none."""
    for ref in chain:
        if ref.stage in stages:
            return ref
    raise UserError(f"None of the upstream runs is a run of {' or '.join(stages)}; start from one that is.")


def upstream_folder(chain: Sequence[RunRef], place: str, *stages: str) -> Path:
    """The artifacts below `place` of the nearest upstream run of one of `stages`."""
    from pipeline import tracking

    return tracking.artifact(nearest(chain, *stages).run_id, place)


def pixels_opener(
    chain: Sequence[RunRef], job: Job, max_store_gib: float, max_logged_gib: float, decoder: "Decoder" = "pillow"
) -> Callable[["Manifest", int, "Fit"], "Pixels"]:
    """`open_run_pixels` for a job on these upstream runs; what is left to be given is (manifest, size_px, fit)."""
    from pipeline.run_pixels import open_run_pixels

    precompute_run = nearest(chain, "precompute").run_id
    return partial(open_run_pixels, precompute_run, job.run_id, max_store_gib, max_logged_gib, decoder=decoder)


def upstream_files(chain: Sequence[RunRef], place: str, *stages: str) -> list[tuple[RunRef, Path]]:
    """The artifact file `place` of every upstream run of one of `stages`, the oldest run first."""
    from pipeline import tracking

    return [(ref, tracking.artifact(ref.run_id, place)) for ref in reversed(chain) if ref.stage in stages]


def given_or_suggested(lr: float | Sequence[float] | str, chain: Sequence[RunRef], key: str) -> float | Sequence[float]:
    """The rate, or rates, in the recipe; for "auto" what the upstream run of lr_find suggests.

    UserError if the upstream run is of another stage: an older suggestion was made for another network.
    """
    if not isinstance(lr, str):
        return lr
    if chain[0].stage != "lr_find":
        raise UserError(
            f"{key} is auto, but the upstream run {chain[0].run_id} is of {chain[0].stage}; run lr_find on it and give "
            f"that run's id, or set {key} to a rate."
        )
    return suggested(chain[0])


def suggested(lr_find: RunRef) -> float:
    """The rate that a run of lr_find suggests."""
    return lr_find.metrics[SUGGESTED]


def upstream_recipe(upstream: str) -> Path:
    """The recipe file of an upstream run."""
    from pipeline import tracking

    return tracking.artifact(tracking.run_of(upstream).run_id, RECIPE_FILE)


def _find(stage: Stage, reuse: str, print_: str) -> RunRef | None:
    from pipeline import tracking

    if reuse == "never":
        return None
    if reuse == "auto":
        return tracking.find_done(print_, stage)
    tracking.run_of(reuse)
    return tracking.find_done(print_, stage, within=reuse)


def point_mlflow_run_at(stage: str, run_id: str, why: str) -> None:
    """What was started by `mlflow run` has a run already, which then points at the one that is gone on with."""
    from pipeline import tracking

    if os.environ.get("MLFLOW_RUN_ID") and not tracking.is_open():
        tags = {tracking.STAGE: stage, tracking.REUSED: run_id}
        with tracking.open_run(stage, tags, {}) as own_run_id:
            (page,) = tracking.pages_beside(own_run_id, [run_id])
            tracking.name_run(own_run_id, stage)
            tracking.describe_run(own_run_id, f"{why} [run {run_id}]({page}).")
