"""The experiment of all runs of a command: the one that the user named, else one named after the data.

`mlflow run` creates its run before this project starts, in Default unless the user named an experiment. The run of the
command is then a new one in the experiment of the data, and the run in Default points to it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import quote

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.system.errors import UserError
from pipeline.tracking.contact import connect
from pipeline.tracking.names import DESCRIPTION, DONE, REUSED, STAGE, first_line, named_after
from pipeline.tracking.sender import call_server
from pipeline.tracking.server import is_absent, is_invalid, shown

DEFAULT = "0"
ID, NAME, RUN_ID = "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"
_outer: ContextVar[str | None] = ContextVar("outer", default=None)
PROJECT_TAGS = ("mlflow.source.", "mlflow.project.", "mlflow.git")


def use_experiment(data: str) -> None:
    """Have the runs of this process, and of those that it starts, go into the experiment named after the data, which
    is created if there is none; unless the user named an experiment."""
    connect()
    if _is_named_by_user():
        return
    name = named_after(data)
    os.environ.pop(ID, None)
    os.environ[NAME] = name
    connect()
    del os.environ[NAME]
    experiment = call_server(lambda: MlflowClient().get_experiment_by_name(name))
    assert experiment is not None, "created by connect"
    os.environ[ID] = experiment.experiment_id


def use_experiment_of(run_id: str) -> None:
    """Have the runs of this process, and of those that it starts, go into the experiment of this run; unless the user
    named one. If there is no such run, nothing is changed."""
    connect()
    if _is_named_by_user():
        return
    run = find_run(run_id)
    if run is not None and REUSED in run.data.tags:
        run = find_run(run.data.tags[REUSED])
    if run is not None:
        os.environ[ID] = run.info.experiment_id
    connect()  # a deleted experiment is reported at once


def experiment_id(parent: str | None = None) -> str | None:
    """The experiment of the open run, or of the run `parent`, or the one in use; None if that was not created yet."""
    active = mlflow.active_run()
    if active is not None:
        return str(active.info.experiment_id)
    if parent is None and os.environ.get(ID):
        return os.environ[ID]
    given = parent or os.environ.get(RUN_ID)
    if given:
        return str(given_run(given).info.experiment_id)
    experiment = MlflowClient().get_experiment_by_name(os.environ.get(NAME, "Default"))
    return str(experiment.experiment_id) if experiment is not None else None


@contextmanager
def nested_in(run_id: str) -> Iterator[None]:
    """Within the block, runs that this process opens are nested in this one, which another process may have open."""
    token = _outer.set(run_id)
    try:
        yield
    finally:
        _outer.reset(token)


def outer_run() -> str | None:
    """The run of `nested_in`, unless this process has one open itself."""
    return _outer.get() if mlflow.active_run() is None else None


def find_run(run_id: str) -> Run | None:
    """The run; None only if the server says that it has none, and UserError if it says anything else."""
    try:
        return call_server(lambda: MlflowClient().get_run(run_id))
    except MlflowException as error:
        if is_absent(error) or is_invalid(error):
            return None
        raise no_run(error) from None


def given_run(run_id: str) -> Run:
    """A run that the environment or another process names; UserError if the server has none."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise no_run(error) from None


def no_run(error: MlflowException) -> UserError:
    """The error of a server that gives no run."""
    if "deleted" in str(error):
        return UserError(
            f"{first_line(error).rstrip('.')}; restore it (mlflow runs restore, mlflow experiments restore), or start "
            "anew."
        )
    return UserError(
        f"The tracking server at {shown(mlflow.get_tracking_uri())} gives no run ({first_line(error)}); "
        "check MLFLOW_TRACKING_URI, which has to be absolute if the project lies in another folder."
    )


def run_in_default(run_id: str | None) -> Run | None:
    """The run that `mlflow run` created, if runs of this process go into another experiment than that run's."""
    in_use = os.environ.get(ID)
    if run_id is None or in_use is None:
        return None
    run = call_server(lambda: given_run(run_id))
    return run if run.info.experiment_id != in_use else None


def project_tags(run: Run) -> dict[str, str]:
    """The tags of a run of `mlflow run` that say which project it runs."""
    return {key: value for key, value in run.data.tags.items() if key.startswith(PROJECT_TAGS)}


def pointer_tags(run_id: str, tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that points to the run `run_id`, which has these `tags`."""
    page = page_of(run_id)
    stage = {STAGE: tags[STAGE]} if STAGE in tags else {}
    return {**stage, REUSED: run_id, DESCRIPTION: f"This is [run {run_id}]({page}) in the experiment of its data."}


def page_of(run_id: str) -> str:
    """The address of a run's page, as a link on any other page of the server."""
    run = call_server(lambda: MlflowClient().get_run(run_id))
    return f"#/experiments/{run.info.experiment_id}/runs/{run_id}"


def server_page() -> str:
    """The address of the tracking server's pages; empty if the runs are in a file or a database."""
    uri = mlflow.get_tracking_uri()
    return shown(uri).rstrip("/") if uri.startswith(("http://", "https://")) else ""


def comparison_page(run_id: str) -> str | None:
    """The address of the page that compares a run of main with the last one that was done before it in its experiment,
    as a link on any other page of the server; None if it is the first."""
    experiment = call_server(lambda: MlflowClient().get_run(run_id)).info.experiment_id
    query = f"tags.`{STAGE}` = 'main' and tags.`{DONE}` = 'true' and attributes.status = 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    found = call_server(lambda: MlflowClient().search_runs([experiment], query, order_by=newest, max_results=2))
    before = next((run.info.run_id for run in found if run.info.run_id != run_id), None)
    if before is None:
        return None
    pairs = {"runs": [run_id, before], "experiments": [experiment]}
    return "#/compare-runs?" + "&".join(f"{key}={quote(json.dumps(value))}" for key, value in pairs.items())


def experiments_beside(run: Run) -> list[str]:
    """The experiments in which a command like the one of this run leaves runs: the run's own, the one in use, and
    Default if those are named after data."""
    found = {str(run.info.experiment_id), os.environ.get(ID) or DEFAULT}
    names = {MlflowClient().get_experiment(one).name for one in found}
    return sorted(found | {DEFAULT}) if any(name.startswith(named_after("")) for name in names) else sorted(found)


def _is_named_by_user() -> bool:
    """Whether an experiment is named in the environment, or was on the command line of `mlflow run`."""
    if os.environ.get(NAME):
        return True
    if os.environ.get(RUN_ID):
        return bool(call_server(lambda: given_run(os.environ[RUN_ID])).info.experiment_id != DEFAULT)
    return bool(os.environ.get(ID))
