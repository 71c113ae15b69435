"""Runs a stage, or reuses a finished run of it."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from pipeline import tracking
from pipeline.cache.hashing import content_key, library_versions
from pipeline.cache.location import cache_folder
from pipeline.cache.store import locked
from pipeline.data.nvjpeg import choose_decoder
from pipeline.ranks.team import processes
from pipeline.recipe.fields import Section
from pipeline.recipe.schema import flatten, write_recipe
from pipeline.runs.fingerprint import git_tags, source_digest, stage_fingerprint
from pipeline.runs.stage import RECIPE_FILE, Stage
from pipeline.runs.upstream import Upstream
from pipeline.system.console import duration, say
from pipeline.system.device import precision_of
from pipeline.system.disk import report_full_disk
from pipeline.system.errors import Pruned
from pipeline.system.memory import return_freed_memory
from pipeline.tracking import RunRef
from pipeline.training.fit import EpochRecord

BACKUPS = "checkpoints"
# The libraries that make the numbers.
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "onnxruntime")
AfterEpoch: TypeAlias = Callable[[EpochRecord], None]
_announce: ContextVar[Callable[[], None]] = ContextVar("announce", default=lambda: None)


def ignore_epoch(record: EpochRecord) -> None:
    """The default `after_epoch`: does nothing."""


@contextmanager
def before_first_work(announce: Callable[[], None]) -> Iterator[None]:
    """Within the block `announce` is called once: before the first stage that is not reused."""

    def announce_once() -> None:
        _announce.set(lambda: None)
        announce()

    token = _announce.set(announce_once)
    try:
        yield
    finally:
        _announce.reset(token)


@dataclass(frozen=True)
class Job:
    """A stage's work: the id of the run that is open for it, and the folder for backups, which is removed when the
    stage has finished. A stage that trains calls `after_epoch` with each epoch's record, those of a backup that it
    resumes from included; that may end it by raising `Pruned`."""

    run_id: str
    folder: Path
    after_epoch: AfterEpoch = ignore_epoch


def run_stage(
    stage: Stage,
    up: Upstream,
    inputs: Mapping[str, str],
    work: Callable[[Job], None],
    after_epoch: AfterEpoch = ignore_epoch,
    own_sections: Mapping[str, Section] = MappingProxyType({}),
) -> RunRef:
    """The finished run of `stage` for the recipe and the upstream runs of `up`, and for further `inputs`. Of the
    recipe's sections it depends on those of the stage; on `own_sections` in the place of those of the same names.

    Unless `recipe.reuse` says otherwise, a run with the same fingerprint is reused, after waiting for the process that
    is making it on this machine, if there is one; what the recipe leaves to the machine may have been another there.
    Else `work` is called with the job of a new run, which is marked done as its last act.
    """
    recipe = up.recipe
    own = recipe.model_copy(update=own_sections)
    sections = {name: getattr(own, name).model_dump() for name in stage.sections}
    known: dict[str, object] = {"versions": library_versions(*LIBRARIES)}
    if up.chain:
        known |= {"upstream": up.chain[0].fingerprint, "upstream_resolved": up.chain[0].resolved}
    code = source_digest(f"stages.{stage.name}")
    fingerprint = stage_fingerprint(stage.name, sections, recipe.seed, {**known, **inputs}, code)
    found = _find(stage, up, fingerprint)
    if found is None:
        _announce.get()()
        with _alone(stage, up, fingerprint) as folder:
            found = _find(stage, up, fingerprint)  # another process may have made it while this one waited
            if found is None:
                if recipe.reuse == "never":
                    shutil.rmtree(folder, ignore_errors=True)
                try:
                    done = _run(stage, up, fingerprint, Job("", folder, after_epoch), work, flatten(own))
                    return_freed_memory()
                except Pruned:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                return done
    say(f"{stage.name}: reused run {found.run_id} (took {duration(found.seconds)}{_format_resolved(found)})")
    link_mlflow_run(stage.name, found.run_id, "Nothing that it depends on has changed: reused")
    return found


def link_mlflow_run(stage: str, run_id: str, why: str) -> None:
    """Let the run that `mlflow run` made point to the run that was reused."""
    if os.environ.get("MLFLOW_RUN_ID") and not tracking.is_open():
        tags = {tracking.STAGE: stage, tracking.REUSED: run_id}
        with tracking.open_run(stage, tags, {}, again=os.environ["MLFLOW_RUN_ID"]) as own_run_id:
            tracking.name_run(own_run_id, stage)
            tracking.describe_run(own_run_id, f"{why} [run {run_id}]({tracking.page_of(run_id)}).")


def _run(
    stage: Stage,
    up: Upstream,
    fingerprint: str,
    job: Job,
    work: Callable[[Job], None],
    settings: Mapping[str, object],
) -> RunRef:
    say(f"{stage.name}: started")
    started = time.perf_counter()
    title = stage.title or stage.name
    tags = {tracking.STAGE: stage.name, tracking.FINGERPRINT: fingerprint, **git_tags()}
    tags[tracking.PROCESSES] = str(processes())
    for name, value in {"device": up.device.type, "precision": precision_of(up.device)}.items():
        tags[f"{tracking.RESOLVED}{name}"] = value
    if up.chain:
        tags[tracking.UPSTREAM] = up.chain[0].run_id
    own = tuple(f"{name}." for name in stage.sections)
    params = {key: value for key, value in settings.items() if key == "seed" or key.startswith(own)}
    with tracking.open_run(title, tags, params) as run_id:
        tracking.name_run(run_id, title)
        tracking.log_text(run_id, write_recipe(up.recipe), RECIPE_FILE)
        with report_full_disk(f"the results of {stage.name}"):
            work(replace(job, run_id=run_id))
        done = tracking.mark_done(run_id, time.perf_counter() - started, stage.artifacts)
    say(f"{stage.name}: done in {duration(done.seconds)} (run {run_id})")
    return done


@contextmanager
def _alone(stage: Stage, up: Upstream, fingerprint: str) -> Iterator[Path]:
    """The folder for backups of this fingerprint, on this device and by this decoder, while no other process on this
    machine works on it."""
    resolved = {"device": up.device.type, "decoder": choose_decoder(up.recipe.data.decoder, up.device)}
    folder = cache_folder() / BACKUPS / content_key({"fingerprint": fingerprint} | resolved)
    with locked(folder, f"{stage.name}: another process is running this very stage; waiting for its result"):
        yield folder


def _find(stage: Stage, up: Upstream, fingerprint: str) -> RunRef | None:
    reuse = up.recipe.reuse
    if reuse == "never":
        return None
    within = None if reuse == "auto" else tracking.run_of(reuse).run_id
    return tracking.find_done(fingerprint, stage.artifacts, within, partial(_may_be_reused, up))


def _may_be_reused(up: Upstream, ref: RunRef) -> bool:
    """Whether a run was made by what the recipe asks for, and the runs that it builds on are still there."""
    for name, asked in {"device": up.recipe.device, "decoder": up.recipe.data.decoder}.items():
        if asked not in ("auto", ref.resolved.get(name, asked)):
            return False
    is_on_this = bool(up.chain) and ref.upstream == up.chain[0].run_id
    return ref.upstream is None or is_on_this or tracking.is_standing(ref.upstream)


def _format_resolved(ref: RunRef) -> str:
    """What a run was made by, such as " on cuda in bfloat16, pictures decoded by nvjpeg"."""
    words = {"device": " on {}", "precision": " in {}", "decoder": ", pictures decoded by {}"}
    return "".join(text.format(ref.resolved[name]) for name, text in words.items() if name in ref.resolved)
