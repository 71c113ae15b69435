"""Runs: opened, ended, found again."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.contract import RunRef, Stage
from pipeline.errors import UserError
from pipeline.processes import identity
from pipeline.tracking.abandoned import close_abandoned
from pipeline.tracking.names import DONE, FINGERPRINT, PROCESS, REASON, REUSED, SECONDS, STAGE, UPSTREAM, first_line
from pipeline.tracking.values import log_metrics, log_params, set_tags

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def open_run(name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> Iterator[str]:
    """The id of a run that is open within the block: the one that `mlflow run` made, where it made one, else a new
    one, nested if another is open.

    It ends as FINISHED; as KILLED by Ctrl-C or SIGTERM; as FAILED, with the reason as a tag, by any error.
    """
    # Taken out of the environment, so that a run opened within this one does not adopt it once more.
    outermost = mlflow.active_run() is None
    handed = os.environ.pop("MLFLOW_RUN_ID", None) if outermost else None
    try:
        run = mlflow.start_run(
            run_id=handed,
            run_name=None if handed else name,
            nested=not outermost,
            tags={PROCESS: identity()},
            log_system_metrics=True,
        )
    except MlflowException as error:
        raise _no_run(error) from None
    run_id: str = run.info.run_id
    try:
        log_params(run_id, params)
        set_tags(run_id, tags)
        if outermost:
            close_abandoned(run.info.experiment_id)
        yield run_id
    except KeyboardInterrupt:
        _end(run_id, "KILLED", "stopped by Ctrl-C or SIGTERM")
        raise
    except BaseException as error:
        _end(run_id, "FAILED", str(error) or type(error).__name__)
        raise
    mlflow.end_run()


def _end(run_id: str, status: str, reason: str) -> None:
    try_tag(run_id, reason)
    mlflow.end_run(status)


def _no_run(error: MlflowException) -> UserError:
    return UserError(
        f"The tracking server at {mlflow.get_tracking_uri()} gives no run ({first_line(error)}); "
        "check MLFLOW_TRACKING_URI, which has to be absolute if the project lies in another folder."
    )


def run_of(run_id: str) -> RunRef:
    """The stage run with this id, or the one that was reused in its stead; UserError if there is no such run."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException:
        raise UserError(
            f"There is no run {run_id} on the tracking server at {mlflow.get_tracking_uri()}; copy the id of an "
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


def find_done(fingerprint: str, stage: Stage, within: str | None = None) -> RunRef | None:
    """The latest FINISHED run with this fingerprint that was marked done and still has its artifacts; with
    `within`, only that run or one nested in it."""
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
        if there.issuperset(stage.artifacts):
            return _as_ref(run, reused=True)
    return None


def mark_done(run_id: str, seconds: float) -> RunRef:
    """The last act of a stage's run: from now on it may be taken instead of running the stage again."""
    log_metrics(run_id, {SECONDS: seconds}, step=0)
    set_tags(run_id, {DONE: "true"})
    return _as_ref(MlflowClient().get_run(run_id), reused=False)


def is_open() -> bool:
    """Whether a run is open in this process."""
    return mlflow.active_run() is not None


def try_tag(run_id: str, reason: str) -> None:
    """Say on the page of a run why it ended, if its server can be reached."""
    try:
        set_tags(run_id, {REASON: reason})
    except MlflowException:
        return


def _experiment_id() -> str | None:
    """The experiment of the open run, else of the run handed over, else the one that a new run would go to, if it is
    there already."""
    active = mlflow.active_run()
    if active is not None:
        return str(active.info.experiment_id)
    handed = os.environ.get("MLFLOW_RUN_ID")
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
