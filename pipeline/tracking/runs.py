"""Opens, ends and finds runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.fluent import _active_run_stack

from pipeline.system.console import warn
from pipeline.system.errors import Pruned, UserError
from pipeline.system.processes import identity, stop_reason
from pipeline.tracking.abandoned import close_abandoned
from pipeline.tracking.artifacts import is_whole, list_files
from pipeline.tracking.contact import connect
from pipeline.tracking.experiments import (
    DEFAULT,
    RUN_ID,
    experiment_id,
    find_run,
    no_run,
    outer_run,
    pointer_tags,
    project_tags,
    run_in_default,
)
from pipeline.tracking.names import (
    DONE,
    FILES,
    FINGERPRINT,
    OPENING,
    PROCESS,
    REASON,
    RESOLVED,
    REUSED,
    SECONDS,
    STAGE,
    UPSTREAM,
)
from pipeline.tracking.sender import Sender, call_server, flush, sending
from pipeline.tracking.server import Unreachable, patience_seconds, shown
from pipeline.tracking.system_metrics import steps_before, system_metrics
from pipeline.tracking.values import LONGEST_TAG, is_made_up, log_metrics, log_params, name_run, set_tags


@dataclass(frozen=True)
class RunRef:
    """A finished run of a stage, on the run `upstream`; `reused` if it was not run now. `resolved` is what its device,
    precision and decoder were, where the recipe may say auto."""

    run_id: str
    stage: str
    fingerprint: str
    upstream: str | None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reused: bool = False
    resolved: dict[str, str] = field(default_factory=dict)


SECONDS_TO_LEAVE = 5.0
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def open_run(
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    parent: str | None = None,
    again: str | None = None,
    is_measured: bool = True,
) -> Iterator[str]:
    """The id of a run that is open within the block: the one that `mlflow run` created, if it did, else a new one;
    nested if another is open, or in the run `parent`, which another process has open; or `again` one that has ended.

    If `mlflow run` created its run in another experiment than the one in use, the run is a new one to which that run
    points, and both end alike. It gets metrics of the machine if it `is_measured`, and is no mere frame of others.

    It ends as FINISHED; as KILLED by Ctrl-C, by SIGTERM and by `Pruned`; as FAILED by any other error; the reason is a
    tag. Raises UserError if there is no server; one that goes away later is waited for when it has to answer.
    """
    connect()
    outer = mlflow.active_run()
    # Taken out of the environment, so that a run opened within this one does not adopt it once more.
    given = os.environ.pop(RUN_ID, None) if outer is None else None
    pointer = None if again else run_in_default(given)
    run_id, first_step = _start(again or given, name, parent or outer_run(), pointer)
    run_ids = [run_id] if pointer is None else [run_id, pointer.info.run_id]
    outer_id = outer.info.run_id if outer is not None else None
    with _active(), _sending(run_ids, outer_id) as sender, _ending(sender, run_ids):
        if pointer is not None:
            set_tags(pointer.info.run_id, {PROCESS: identity(), **pointer_tags(run_id, tags)})
            name_run(pointer.info.run_id, name)
            params = {**params, **pointer.data.params}  # as they were typed
        log_params(run_id, params)
        set_tags(run_id, tags)
        if outer is None:
            call_server(lambda: close_abandoned(run_id))
        with system_metrics(run_id, partial(log_metrics, run_id), first_step) if is_measured else nullcontext():
            yield run_id


@contextmanager
def _ending(sender: Sender, run_ids: Sequence[str]) -> Iterator[None]:
    """End runs by how the block ends."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note("KILLED")  # read by the command line
        _end(sender, run_ids, "KILLED", stop_reason() or "stopped by Ctrl-C or SIGTERM")
        raise
    except Pruned as error:
        _end(sender, run_ids, "KILLED", str(error))
        raise
    except Unreachable as error:
        is_done = error.done == run_ids[0]  # it only has to be sent
        for run_id in run_ids if not is_done else ():
            set_tags(run_id, {REASON: str(error)})
        _enqueue_status(sender, run_ids, "FINISHED" if is_done else "FAILED")
        raise
    except BaseException as error:
        _end(sender, run_ids, "FAILED", str(error) or type(error).__name__)
        raise
    _enqueue_status(sender, run_ids, "FINISHED")
    sender.flush(patience_seconds())


def _start(given: str | None, name: str, parent: str | None, pointer: Run | None) -> tuple[str, int]:
    """Start a run, or continue the `given` one if it is no `pointer`: (its id, the next step of system metrics)."""
    opening = uuid4().hex
    experiment = experiment_id(parent)
    given = None if pointer is not None else given
    new_tags = {OPENING: opening} | (project_tags(pointer) if pointer is not None else {})
    if pointer is not None and not is_made_up(pointer):
        name = pointer.info.run_name

    def start() -> tuple[str, int]:
        # If the server went away before it answered, it may have created the run nevertheless.
        known = given or (_opened_by(opening, experiment) if tried else None)
        tried.append(True)
        run = mlflow.start_run(
            run_id=known,
            run_name=None if known else name,
            nested=mlflow.active_run() is not None,
            parent_run_id=None if known else parent,
            experiment_id=None if known else experiment,
            tags={PROCESS: identity()} | ({} if known else new_tags),
            log_system_metrics=False,
        )
        for ended in {REASON, DONE}.intersection(run.data.tags):  # of a run that goes on
            MlflowClient().delete_tag(run.info.run_id, ended)
        return run.info.run_id, steps_before(run)

    tried: list[bool] = []
    try:
        return call_server(start)
    except MlflowException as error:
        raise no_run(error) from None


def _opened_by(opening: str, experiment: str | None) -> str | None:
    query = f"tags.`{OPENING}` = '{opening}'"
    found = MlflowClient().search_runs([experiment or DEFAULT], query, max_results=1)
    return found[0].info.run_id if found else None


@contextmanager
def _sending(run_ids: Sequence[str], outer: str | None) -> Iterator[Sender]:
    """Send what is logged to these runs, by the sender of the run `outer` if there is one; if the disk is too full for
    it, they fail."""
    with ExitStack() as stack:
        try:
            for run_id in run_ids:
                sender = stack.enter_context(sending(run_id, outer or run_ids[0]))
        except OSError:
            for run_id in run_ids:
                MlflowClient().set_terminated(run_id, "FAILED")
            raise
        yield sender


@contextmanager
def _active() -> Iterator[None]:
    """At the end the run is no longer the active one. `mlflow.end_run` would wait for the server."""
    try:
        yield
    finally:
        _active_run_stack.get().pop()  # type: ignore[no-untyped-call]


def _end(sender: Sender, run_ids: Sequence[str], status: str, reason: str) -> None:
    """End runs before they are done, without keeping the user waiting if the server is away."""
    for run_id in run_ids:
        set_tags(run_id, {REASON: reason})
    _enqueue_status(sender, run_ids, status)
    try:
        sender.flush(SECONDS_TO_LEAVE)
    except Unreachable as error:
        warn(str(error))


def _enqueue_status(sender: Sender, run_ids: Sequence[str], status: str) -> None:
    for run_id in run_ids:
        sender.enqueue(run_id, "status", {"status": status, "end_time_ms": int(time.time() * 1000)})


def run_of(run_id: str) -> RunRef:
    """The stage run with this id, or the one that it points to; UserError if there is no such run."""
    connect()
    flush(run_id)
    run = find_run(run_id)
    if run is None:
        raise UserError(
            f"There is no run {run_id} on the tracking server at {shown(mlflow.get_tracking_uri())}; copy the id of an "
            "upstream run from its page."
        )
    tags = run.data.tags
    if REUSED in tags:
        return run_of(tags[REUSED])
    if STAGE not in tags:
        raise UserError(f"The run {run_id} is no run of a stage; give the id of one of its nested runs.")
    if DONE not in tags and tags[STAGE] != "main":
        raise UserError(f"The run {run_id} of {tags[STAGE]} did not finish ({run.info.status}); run it again first.")
    return _as_ref(run, reused=False)


def find_done(
    fingerprint: str,
    artifacts: Sequence[str],
    within: str | None = None,
    accept: Callable[[RunRef], bool] = lambda ref: True,
) -> RunRef | None:
    """The latest FINISHED run of the experiment in use with this fingerprint that was marked done, still has these
    artifacts, undamaged, and that `accept` is true of; with `within`, only that run or one nested in it."""
    connect()
    for run in call_server(lambda: _find_done(fingerprint, within)):
        ref, files = _as_ref(run, reused=True), run.data.tags.get(FILES)
        if call_server(partial(is_whole, ref.run_id, artifacts, files)) and accept(ref):
            return ref
    return None


def _find_done(fingerprint: str, within: str | None) -> list[Run]:
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{DONE}` = 'true' and attributes.status = 'FINISHED'"
    searched = experiment_id() if within is None else MlflowClient().get_run(within).info.experiment_id
    if searched is None:
        return []
    runs = MlflowClient().search_runs([searched], query, order_by=["attributes.start_time DESC"], max_results=50)
    return [run for run in runs if within is None or _is_within(run, within)]


def _is_within(run: Run, within: str) -> bool:
    """Whether a run is this one, or nested in it, however deep."""
    inner: Run | None = run
    while inner is not None and inner.info.run_id != within:
        parent = inner.data.tags.get("mlflow.parentRunId")
        inner = MlflowClient().get_run(parent) if parent else None
    return inner is not None


def is_standing(run_id: str) -> bool:
    """Whether a run, the one that it follows, and so on, are all there, done and with the artifacts that they had."""
    following: str | None = run_id
    while following is not None:
        run = find_run(following)
        if run is None or run.info.lifecycle_stage != "active" or DONE not in run.data.tags:
            return False
        if not call_server(partial(is_whole, following, (), run.data.tags.get(FILES))):
            return False
        following = run.data.tags.get(UPSTREAM)
    return True


def mark_done(run_id: str, seconds: float, artifacts: Sequence[str] = ()) -> RunRef:
    """The last step of a stage's run: from now on it may be reused instead of running the stage again, as long as it
    has all files of these artifacts."""
    log_metrics(run_id, {SECONDS: seconds}, step=0)
    set_tags(run_id, {DONE: "true"})
    try:
        flush(run_id)
        files = call_server(lambda: list_files(run_id, artifacts)) if artifacts else ""
        set_tags(run_id, {FILES: files} if 0 < len(files) <= LONGEST_TAG else {})
        return _as_ref(call_server(lambda: MlflowClient().get_run(run_id)), reused=False)
    except Unreachable as error:
        error.done = run_id
        raise


def is_there(run_id: str) -> bool:
    """Whether the tracking server has this run, and it was not deleted."""
    connect()
    run = find_run(run_id)
    return run is not None and bool(run.info.lifecycle_stage == "active")


def is_open() -> bool:
    """Whether a run is open in this process."""
    return mlflow.active_run() is not None


def _as_ref(run: Run, reused: bool) -> RunRef:
    tags: dict[str, Any] = run.data.tags
    return RunRef(
        run_id=run.info.run_id,
        stage=tags[STAGE],
        fingerprint=tags.get(FINGERPRINT, ""),
        upstream=tags.get(UPSTREAM),
        metrics=dict(run.data.metrics),
        seconds=run.data.metrics.get(SECONDS, 0.0),
        reused=reused,
        resolved={key.removeprefix(RESOLVED): value for key, value in tags.items() if key.startswith(RESOLVED)},
    )
