"""The new run of a stage that is not reused: one process of this machine at a time works on it."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from pipeline import tracking
from pipeline.cache.hashing import content_key
from pipeline.cache.location import cache_folder
from pipeline.cache.store import locked
from pipeline.data.nvjpeg import choose_decoder
from pipeline.ranks.readiness import ready_helpers
from pipeline.ranks.team import processes
from pipeline.recipe.schema import write_recipe
from pipeline.runs.fingerprint import git_tags
from pipeline.runs.stage import RECIPE_FILE, AfterEpoch, Job, Stage
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.determinism import deterministic
from pipeline.runs.work.materials import device_of
from pipeline.system.console import duration, say
from pipeline.system.device import precision_of, training_precision
from pipeline.system.disk import report_full_disk
from pipeline.system.errors import Pruned, UserError
from pipeline.system.memory import return_freed_memory
from pipeline.tracking import RunRef

BACKUPS = "checkpoints"
# What helpers compute with; it loads timm.
OF_HELPERS = ("pipeline.models.engine.helpers",)


def run_alone(
    stage: Stage,
    up: Upstream,
    fingerprint: str,
    params: Mapping[str, object],
    find: Callable[[], RunRef | None],
    work: Callable[[Job], None],
    after_epoch: AfterEpoch,
) -> RunRef:
    """A new run with this fingerprint and these `params`, in which `work` is called and which is marked done as its
    last act; or what `find` finds, once no other process of this machine is making it."""
    with _alone(stage, up, fingerprint) as folder:
        found = find()  # another process may have made it while this one waited
        if found is not None:
            return found
        if up.recipe.reuse == "never":
            shutil.rmtree(folder, ignore_errors=True)
        try:
            tags = {tracking.STAGE: stage.name, tracking.FINGERPRINT: fingerprint, **git_tags()}
            done = _run(stage, up, tags, params, lambda run_id: work(Job(run_id, folder, after_epoch)))
            return_freed_memory()
        except Pruned:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return done


def _run(
    stage: Stage, up: Upstream, tags: dict[str, str], params: Mapping[str, object], work: Callable[[str], None]
) -> RunRef:
    computing = _computing(up)
    say(f"{stage.name}: started")
    started = time.perf_counter()
    title, device = stage.title or stage.name, device_of(up.recipe)
    ready_helpers(OF_HELPERS, device)
    tags[tracking.PROCESSES] = str(processes())
    resolved = {"device": device.type, "precision": precision_of(device), "deterministic": _is_deterministic(up)}
    tags |= {f"{tracking.RESOLVED}{name}": value for name, value in resolved.items()}
    if up.chain:
        tags[tracking.UPSTREAM] = up.chain[0].run_id
    with tracking.open_run(title, tags, params) as run_id:
        tracking.name_run(run_id, title)
        tracking.log_text(run_id, write_recipe(up.recipe), RECIPE_FILE)
        with report_full_disk(f"the results of {stage.name}"), computing:
            work(run_id)
        done = tracking.mark_done(run_id, time.perf_counter() - started, stage.artifacts)
    say(f"{stage.name}: done in {duration(done.seconds)} (run {run_id})")
    return done


def _computing(up: Upstream) -> AbstractContextManager[None]:
    """The block in which a stage works, with the same result each time if the recipe says so."""
    if not up.recipe.deterministic:
        return nullcontext()
    device = device_of(up.recipe)
    if processes() > 1 and device.type == "cuda":
        raise UserError(
            f"deterministic is true, but {processes()} processes may add up their gradients in any order; set it to "
            "false, or leave processes out."
        )
    return deterministic(device)


def _is_deterministic(up: Upstream) -> str:
    """Whether a stage would come to the same result each time: yes or no."""
    return "yes" if up.recipe.deterministic or device_of(up.recipe).type == "cpu" else "no"


@contextmanager
def _alone(stage: Stage, up: Upstream, fingerprint: str) -> Iterator[Path]:
    """The folder for backups of this fingerprint, on this device, in this precision and by this decoder, while no other
    process on this machine works on it."""
    device = device_of(up.recipe)
    resolved = {
        "device": device.type,
        "decoder": choose_decoder(up.recipe.data.decoder, device),
        "precision": training_precision(up.recipe.training.precision, device),
    }
    if _is_deterministic(up) == "no":
        resolved["deterministic"] = "no"
    folder = cache_folder() / BACKUPS / content_key({"fingerprint": fingerprint} | resolved)
    with locked(folder, f"{stage.name}: another process is running this very stage; waiting for its result"):
        yield folder
