"""Runs: opened, ended, found again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.fluent import _active_run_stack

from pipeline.cache.store import DESCRIPTION, find_damage, size_bytes
from pipeline.system.console import say, warn
from pipeline.system.errors import Pruned, UserError
from pipeline.system.processes import identity
from pipeline.tracking.abandoned import close_abandoned
from pipeline.tracking.artifacts import local_artifacts
from pipeline.tracking.contact import connect
from pipeline.tracking.names import (
    DONE,
    FINGERPRINT,
    OPENING,
    PROCESS,
    REASON,
    REUSED,
    SECONDS,
    STAGE,
    UPSTREAM,
    first_line,
)
from pipeline.tracking.sender import Sender, call_server, flush, sending
from pipeline.tracking.server import Unreachable, patience_seconds, shown
from pipeline.tracking.system_metrics import system_metrics
from pipeline.tracking.values import LONGEST_TAG, log_metrics, log_params, set_tags


@dataclass(frozen=True)
class RunRef:
    """A finished run of a stage. `upstream` is the run id that it followed; `reused` says that it was not run now."""

    run_id: str
    stage: str
    fingerprint: str
    upstream: str | None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reused: bool = False


SECONDS_TO_LEAVE = 5.0
LARGEST_CHECKED_BYTES = 2**28


logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)


os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def open_run(
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    parent: str | None = None,
    again: str | None = None,
) -> Iterator[str]:
    """The id of a run that is open within the block: the one that `mlflow run` made, where it made one, else a new
    one, nested if another is open, or in the run `parent`, which another process has open; or `again` one that has
    ended.

    It ends as FINISHED; as KILLED by Ctrl-C, by SIGTERM, and where it is `Pruned`; as FAILED by any error; the reason
    is a tag. Raises UserError where there is no server to be had; one that goes away later is waited for when it has to
    answer.
    """
    connect()
    outer = mlflow.active_run()
    # Taken out of the environment, so that a run opened within this one does not adopt it once more.
    handed = os.environ.pop("MLFLOW_RUN_ID", None) if outer is None else None
    run_id, first_step = _start(again or handed, name, parent)
    with _active(), _sending(run_id, outer.info.run_id if outer is not None else None) as sender:
        try:
            log_params(run_id, params)
            set_tags(run_id, tags)
            if outer is None:
                call_server(lambda: close_abandoned(run_id))
            with system_metrics(run_id, partial(log_metrics, run_id), first_step):
                yield run_id
        except KeyboardInterrupt:
            _end(sender, run_id, "KILLED", "stopped by Ctrl-C or SIGTERM")
            raise
        except Pruned as error:
            _end(sender, run_id, "KILLED", str(error))
            raise
        except Unreachable as error:
            whole = error.done == run_id  # and only has to be sent
            if not whole:
                set_tags(run_id, {REASON: str(error)})
            _enqueue_status(sender, run_id, "FINISHED" if whole else "FAILED")
            raise
        except BaseException as error:
            _end(sender, run_id, "FAILED", str(error) or type(error).__name__)
            raise
        _enqueue_status(sender, run_id, "FINISHED")
        sender.flush(patience_seconds())


def _start(given: str | None, name: str, parent: str | None) -> tuple[str, int]:
    """Start a run, or go on with the `given` one: its id, and the step that its next system metrics have."""
    opening = uuid4().hex
    experiment_id = _experiment_id(parent)

    def start() -> tuple[str, int]:
        # Where the server was away before it answered, it may have made the run all the same.
        known = given or (_opened_by(opening, experiment_id) if tried else None)
        tried.append(True)
        run = mlflow.start_run(
            run_id=known,
            run_name=None if known else name,
            nested=mlflow.active_run() is not None,
            parent_run_id=None if known else parent,
            experiment_id=experiment_id if parent and not known else None,
            tags={PROCESS: identity()} | ({} if known else {OPENING: opening}),
            log_system_metrics=False,
        )
        if REASON in run.data.tags:  # of what broke off before
            MlflowClient().delete_tag(run.info.run_id, REASON)
        return run.info.run_id, _system_steps(run)

    tried: list[bool] = []
    try:
        return call_server(start)
    except MlflowException as error:
        raise _no_run(error) from None


def _opened_by(opening: str, experiment_id: str | None) -> str | None:
    query = f"tags.`{OPENING}` = '{opening}'"
    found = MlflowClient().search_runs([experiment_id or "0"], query, max_results=1)
    return found[0].info.run_id if found else None


def _system_steps(run: Run) -> int:
    """How many points of system metrics a run has that was open before."""
    names = [name for name in run.data.metrics if name.startswith("system/")]
    return len(MlflowClient().get_metric_history(run.info.run_id, names[0])) if names else 0


@contextmanager
def _sending(run_id: str, within: str | None) -> Iterator[Sender]:
    """`sending`; where the disk is too full for it, the run is ended."""
    with ExitStack() as stack:
        try:
            sender = stack.enter_context(sending(run_id, within))
        except OSError:
            MlflowClient().set_terminated(run_id, "FAILED")
            raise
        yield sender


@contextmanager
def _active() -> Iterator[None]:
    """At the end the run is the active one no longer. `mlflow.end_run` would wait for the server."""
    try:
        yield
    finally:
        _active_run_stack.get().pop()  # type: ignore[no-untyped-call]


def _end(sender: Sender, run_id: str, status: str, reason: str) -> None:
    """End a run that broke off, without keeping the user waiting where the server is away."""
    set_tags(run_id, {REASON: reason})
    _enqueue_status(sender, run_id, status)
    try:
        sender.flush(SECONDS_TO_LEAVE)
    except Unreachable as error:
        warn(str(error))


def _enqueue_status(sender: Sender, run_id: str, status: str) -> None:
    sender.enqueue(run_id, "status", {"status": status, "end_time_ms": int(time.time() * 1000)})


def _no_run(error: MlflowException) -> UserError:
    return UserError(
        f"The tracking server at {shown(mlflow.get_tracking_uri())} gives no run ({first_line(error)}); "
        "check MLFLOW_TRACKING_URI, which has to be absolute if the project lies in another folder."
    )


def run_of(run_id: str) -> RunRef:
    """The stage run with this id, or the one that was reused in its stead; UserError if there is no such run."""
    connect()
    flush(run_id)
    try:
        run = call_server(lambda: MlflowClient().get_run(run_id))
    except MlflowException:
        raise UserError(
            f"There is no run {run_id} on the tracking server at {shown(mlflow.get_tracking_uri())}; copy the id of an "
            "upstream run from its page."
        ) from None
    tags = run.data.tags
    if REUSED in tags:
        return run_of(tags[REUSED])
    if STAGE not in tags:
        raise UserError(f"The run {run_id} is no run of a stage; give the id of one of its nested runs.")
    if DONE not in tags and tags[STAGE] != "main":
        raise UserError(f"The run {run_id} of {tags[STAGE]} did not finish ({run.info.status}); run it again first.")
    return _as_ref(run, reused=False)


def find_done(fingerprint: str, artifacts: Sequence[str], within: str | None = None) -> RunRef | None:
    """The latest FINISHED run with this fingerprint that was marked done and still has these artifacts, undamaged; with
    `within`, only that run or one nested in it."""
    connect()
    return call_server(lambda: _find_done(fingerprint, artifacts, within))


def _find_done(fingerprint: str, artifacts: Sequence[str], within: str | None) -> RunRef | None:
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{DONE}` = 'true' and attributes.status = 'FINISHED'"
    client = MlflowClient()
    experiment_id = _experiment_id()
    if experiment_id is None:
        return None
    for run in client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"], max_results=50):
        nested_in = run.data.tags.get("mlflow.parentRunId")
        if within is not None and within not in (run.info.run_id, nested_in):
            continue
        there = {item.path for item in client.list_artifacts(run.info.run_id)}
        if there.issuperset(artifacts) and not _is_damaged(run.info.run_id, artifacts):
            return _as_ref(run, reused=True)
    return None


def _is_damaged(run_id: str, artifacts: Sequence[str]) -> bool:
    """Whether artifacts that lie on this machine, and describe themselves, are no longer what they were."""
    folder = local_artifacts(run_id)
    for place in artifacts if folder is not None else ():
        described = Path(str(folder)) / place
        if (described / DESCRIPTION).exists():
            damage = find_damage(described, contents=size_bytes(described) <= LARGEST_CHECKED_BYTES)
            if damage:
                say(f"run {run_id} is not reused: its {place} is damaged ({damage})")
                return True
    return False


def mark_done(run_id: str, seconds: float) -> RunRef:
    """The last act of a stage's run: from now on it may be taken instead of running the stage again."""
    log_metrics(run_id, {SECONDS: seconds}, step=0)
    set_tags(run_id, {DONE: "true"})
    try:
        flush(run_id)
        return _as_ref(call_server(lambda: MlflowClient().get_run(run_id)), reused=False)
    except Unreachable as error:
        error.done = run_id
        raise


def is_there(run_id: str) -> bool:
    """Whether the tracking server has this run, and it was not deleted."""
    connect()
    try:
        return bool(call_server(lambda: MlflowClient().get_run(run_id)).info.lifecycle_stage == "active")
    except MlflowException:
        return False


def is_open() -> bool:
    """Whether a run is open in this process."""
    return mlflow.active_run() is not None


def tag_reason(run_id: str, reason: str) -> None:
    """Say on the page of a run why it ended; where its server is away, that is left in the outbox."""
    with sending(run_id) as sender, suppress(Unreachable):
        sender.enqueue(run_id, "values", {"tags": {REASON: reason[:LONGEST_TAG]}})
        sender.flush(0.0)


def _experiment_id(parent: str | None = None) -> str | None:
    """The experiment of the open run, else of the run `parent`, or the one handed over, else the one that a new run
    would go to, if it is there already."""
    active = mlflow.active_run()
    if active is not None:
        return str(active.info.experiment_id)
    handed = parent or os.environ.get("MLFLOW_RUN_ID")
    client = MlflowClient()
    if handed:
        try:
            return str(client.get_run(handed).info.experiment_id)
        except MlflowException as error:
            raise _no_run(error) from None
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    experiment = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default"))
    return str(experiment.experiment_id) if experiment is not None else None


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
    )
