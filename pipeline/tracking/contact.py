"""Connects to the tracking server before anything is read or created."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import mlflow
from filelock import Timeout
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.cache.hashing import content_key
from pipeline.cache.location import cache_folder, shared_lock
from pipeline.system.console import say, warn
from pipeline.system.errors import UserError
from pipeline.tracking.delivery import Queue, deliver
from pipeline.tracking.names import first_line
from pipeline.tracking.outbox import Outbox, outbox_folder
from pipeline.tracking.server import absolute, cause, check_server, is_absent, shown
from pipeline.tracking.storage.artifact_store import check_store


def connect() -> None:
    """Make sure, once for each server, that it can be reached, with its tables and the experiment that runs go into,
    and send what earlier processes left for it. UserError, within seconds, if it cannot."""
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") or None
    name = None if experiment_id else os.environ.get("MLFLOW_EXPERIMENT_NAME")
    _connect(mlflow.get_tracking_uri(), name, experiment_id, cache_folder())


@cache
def _connect(uri: str, experiment: str | None, experiment_id: str | None, cache: Path) -> None:
    check_server(uri)
    # On an empty database several processes would create the tables at once, and most of them would fail.
    with shared_lock(cache / "servers" / f"{content_key({'uri': absolute(uri)})}.lock"):
        try:
            if experiment_id is not None:
                _check_experiment(MlflowClient(uri), experiment_id)
            else:
                _make_ready(MlflowClient(uri), experiment)
        except UserError:
            raise
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
        return
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            found = client.get_experiment(client.create_experiment(experiment))
    except MlflowException:  # another machine may have created it at the same time
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
    if found is not None:
        _check_active(found)
        check_store(found.artifact_location)


def _check_experiment(client: MlflowClient, experiment_id: str) -> None:
    try:
        found = client.get_experiment(experiment_id)
    except MlflowException as error:
        if not is_absent(error):
            raise
        raise UserError(
            f"The tracking server at {shown(client.tracking_uri)} has no experiment {experiment_id}, which "
            "MLFLOW_EXPERIMENT_ID names; check MLFLOW_TRACKING_URI, which has to be absolute if the project lies in "
            "another folder, or name another experiment."
        ) from None
    _check_active(found)
    check_store(found.artifact_location)


def _check_active(experiment: Experiment) -> None:
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"The experiment {experiment.name} was deleted; restore it (mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}), or name another with MLFLOW_EXPERIMENT_NAME."
        )


ATTEMPTS, SECONDS_BETWEEN = 3, 0.5


@dataclass(frozen=True)
class SentLeftovers:
    """How many entries of one run were sent, how many are left, and why; `refused` are those that the server did not
    take, or not wholly."""

    run_id: str
    server: str
    sent: int
    left: int
    problem: str | None = None
    refused: int = 0


def send_leftovers(uri: str | None = None) -> Iterator[SentLeftovers]:
    """Send what is left, run by run; with `uri`, only what this machine left for the server there.

    Outboxes of processes that are alive are left alone. Without `uri`, entries that were refused are tried once
    more, and then only kept.
    """
    folder = outbox_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        outbox = Outbox(path.name)
        writer = outbox.writer()
        is_own = uri is None or (writer.get("uri"), writer.get("host")) == (absolute(uri), socket.gethostname())
        if not is_own or "uri" not in writer or outbox.is_in_use():
            continue
        try:
            with outbox.lock(writer["uri"]):
                if uri is None:
                    outbox.take_back_refused()
                sent = _send_outbox(outbox, writer["uri"])
                if uri is None and sent.refused:
                    kept = outbox.give_up_refused()
                    sent = replace(sent, problem=f"{sent.problem} They are not sent again, but kept in {kept}.")
                yield sent
        except (Timeout, PermissionError):  # it is in use, or of another user
            continue


def _send_outbox(outbox: Outbox, uri: str) -> SentLeftovers:
    entries = outbox.read()
    sent, refused, attempts, problem, last = 0, 0, 0, None, ""
    try:
        if entries:
            check_server(uri)
        for call in deliver(uri, Queue(((outbox, entry) for entry in entries), is_complete=True)):
            sent += call.sent
            if call.refused is not None and call.error is not None:
                refused += 1
                last = f"The server refuses it ({cause(call.error)})."
            elif call.error is not None:
                attempts += 1
                if attempts == ATTEMPTS:
                    problem = f"The server does not take it for now ({cause(call.error)})."
                    break
                time.sleep(SECONDS_BETWEEN)  # it may have been a connection that was closed while it was idle
    except UserError as error:
        problem = str(error)
    if problem is None and refused:
        problem = last
    return SentLeftovers(outbox.run_id, shown(uri), sent, len(entries) - sent, problem, refused)
