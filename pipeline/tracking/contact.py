"""The first words with a tracking server, before anything is read or made."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mlflow
from filelock import FileLock, Timeout
from mlflow.tracking import MlflowClient

from pipeline.cache.hashing import content_key
from pipeline.cache.store import cache_folder
from pipeline.system.console import say, warn
from pipeline.system.errors import UserError
from pipeline.tracking.names import first_line
from pipeline.tracking.outbox import Outbox, first_group, is_alive, outbox_folder
from pipeline.tracking.server import absolute, cause, check_server, is_lasting, shown


def connect() -> None:
    """Make sure, once for each server, that it is there, with its tables and the experiment that runs go to, and
    send what earlier processes left for it. UserError, within seconds, where it is not.
    """
    experiment = None if os.environ.get("MLFLOW_EXPERIMENT_ID") else os.environ.get("MLFLOW_EXPERIMENT_NAME")
    _connect(mlflow.get_tracking_uri(), experiment, cache_folder())


@cache
def _connect(uri: str, experiment: str | None, cache: Path) -> None:
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


ATTEMPTS, SECONDS_BETWEEN = 3, 0.5


@dataclass(frozen=True)
class SentLeftovers:
    """What became of one run's leftovers: how many were sent and how many are left, and why."""

    run_id: str
    server: str
    sent: int
    left: int
    problem: str | None = None


def send_leftovers(uri: str | None = None) -> Iterator[SentLeftovers]:
    """Send what is left, run by run; with `uri`, only what this machine left for the server there.

    Outboxes of processes that still run are left alone. Without `uri`, entries that were refused are tried again.
    """
    folder = outbox_folder()
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not place.is_dir():
            continue
        outbox = Outbox(place.name)
        writer = outbox.writer()
        mine = uri is None or (writer.get("uri"), writer.get("host")) == (absolute(uri), socket.gethostname())
        if not mine or "uri" not in writer or is_alive(writer):
            continue
        try:
            with outbox.lock(writer["uri"]):
                if uri is None:
                    outbox.take_back_refused()
                yield _send_outbox(outbox, writer["uri"])
        except Timeout:
            continue


def _send_outbox(outbox: Outbox, uri: str) -> SentLeftovers:
    entries = outbox.read()
    sent, refused, alone, problem = 0, 0, False, None
    failures = 0
    while entries and problem is None:
        group = entries[:1] if alone else first_group(entries)
        try:
            if sent == refused == 0:
                check_server(uri)
            outbox.send(MlflowClient(uri), group)
        except UserError as error:
            problem = str(error)
        except Exception as error:  # another run's leftovers may still go
            failures += 1
            if not is_lasting(error) and failures < ATTEMPTS:  # such as a connection that was shut while it was idle
                time.sleep(SECONDS_BETWEEN)
            elif not is_lasting(error):
                problem = f"The server does not take it for now ({cause(error)})."
            elif len(group) > 1:
                alone = True
            else:
                place = outbox.set_aside(group[0])
                refused, entries = refused + 1, entries[1:]
                last = f"The server refuses it ({cause(error)}); see {place.parent}."
        else:
            for entry in group:
                outbox.remove(entry)
            sent, entries = sent + len(group), entries[len(group) :]
    if problem is None and refused:
        problem = last
    return SentLeftovers(outbox.run_id, shown(uri), sent, len(entries) + refused, problem)
