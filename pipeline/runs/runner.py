"""Runs a stage, or reuses a finished run of it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType

from pipeline import tracking
from pipeline.cache.hashing import library_versions
from pipeline.recipe.fields import Section
from pipeline.recipe.schema import flatten
from pipeline.runs.fingerprint import source_digest, stage_fingerprint
from pipeline.runs.stage import AfterEpoch, Job, Stage, ignore_epoch
from pipeline.runs.upstream import Upstream
from pipeline.system.console import duration, say
from pipeline.system.later import later
from pipeline.tracking import RunRef

# The libraries that make the numbers.
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "onnxruntime")
_announce: ContextVar[Callable[[], None]] = ContextVar("announce", default=lambda: None)


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
    find = partial(_find, stage, up, fingerprint)
    ref: RunRef | None = find()
    if ref is None:
        _announce.get()()
        own_keys = tuple(f"{name}." for name in stage.sections)
        params = {key: value for key, value in flatten(own).items() if key == "seed" or key.startswith(own_keys)}
        run_alone = later("pipeline.runs.work.new_run.run_alone", stage, up, fingerprint, params)
        ref = run_alone(find, work, after_epoch)
    if ref.reused:
        say(f"{stage.name}: reused run {ref.run_id} (took {duration(ref.seconds)}{_format_resolved(ref)})")
        link_mlflow_run(stage.name, ref.run_id, "Nothing that it depends on has changed: reused")
    return ref


def link_mlflow_run(stage: str, run_id: str, why: str) -> None:
    """Let the run that `mlflow run` made point to the run that was reused."""
    if os.environ.get("MLFLOW_RUN_ID") and not tracking.is_open():
        tags = {tracking.STAGE: stage, tracking.REUSED: run_id}
        with tracking.open_run(stage, tags, {}, again=os.environ["MLFLOW_RUN_ID"]) as own_run_id:
            tracking.name_run(own_run_id, stage)
            tracking.describe_run(own_run_id, f"{why} [run {run_id}]({tracking.page_of(run_id)}).")


def _find(stage: Stage, up: Upstream, fingerprint: str) -> RunRef | None:
    reuse = up.recipe.reuse
    if reuse == "never":
        return None
    within = None if reuse == "auto" else tracking.run_of(reuse).run_id
    return tracking.find_done(fingerprint, stage.artifacts, within, partial(_may_be_reused, up))


def _may_be_reused(up: Upstream, ref: RunRef) -> bool:
    """Whether a run was made by what the recipe asks for, and the runs that it builds on are still there."""
    is_wanted = "yes" if up.recipe.deterministic else "auto"
    asked_for = {"device": up.recipe.device, "decoder": up.recipe.data.decoder, "deterministic": is_wanted}
    for name, asked in asked_for.items():
        if asked not in ("auto", ref.resolved.get(name, asked)):
            return False
    is_on_this = bool(up.chain) and ref.upstream == up.chain[0].run_id
    return ref.upstream is None or is_on_this or tracking.is_standing(ref.upstream)


def _format_resolved(ref: RunRef) -> str:
    """What a run was made by, such as " on cuda in bfloat16, pictures decoded by nvjpeg"."""
    words = {"device": " on {}", "precision": " in {}", "decoder": ", pictures decoded by {}"}
    return "".join(text.format(ref.resolved[name]) for name, text in words.items() if name in ref.resolved)
