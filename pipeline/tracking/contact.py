"""The first words with a tracking server, before anything is read or made."""

import os
from functools import cache
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.tracking import MlflowClient

from pipeline.console import say, warn
from pipeline.errors import UserError
from pipeline.store import cache_folder, content_key
from pipeline.tracking.leftovers import send_leftovers
from pipeline.tracking.names import first_line
from pipeline.tracking.server import absolute, check_server, shown


def meet_server() -> None:
    """Make sure, once for each server, that it is there, with its tables and the experiment that runs go to, and
    send what earlier processes left for it. UserError, within seconds, where it is not.
    """
    experiment = None if os.environ.get("MLFLOW_EXPERIMENT_ID") else os.environ.get("MLFLOW_EXPERIMENT_NAME")
    _meet(mlflow.get_tracking_uri(), experiment, cache_folder())


@cache
def _meet(uri: str, experiment: str | None, cache: Path) -> None:
    check_server(uri)
    (cache / "servers").mkdir(parents=True, exist_ok=True)
    # On an empty database several processes would make the tables at once, and most of them fail.
    with FileLock(cache / "servers" / f"{content_key({'uri': absolute(uri)})}.lock"):
        try:
            _make_ready(MlflowClient(uri), experiment)
        except Exception as error:  # a database's driver has errors of its own
            raise UserError(
                f"The tracking server at {shown(uri)} cannot be used ({first_line(error)}); mend that, or set "
                "MLFLOW_TRACKING_URI to another."
            ) from None
    for sent in send_leftovers(uri):
        if sent.sent:
            say(f"Sent {sent.sent} entries that were left of run {sent.run_id} to the tracking server.")
        if sent.problem:
            warn(f"{sent.left} entries of run {sent.run_id} are left. {sent.problem}")


def _make_ready(client: MlflowClient, experiment: str | None) -> None:
    if experiment is None:
        client.search_experiments(max_results=1)
    elif client.get_experiment_by_name(experiment) is None:
        client.create_experiment(experiment)
