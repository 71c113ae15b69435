"""Entries left in outboxes by processes that are no more, or whose server did not come back in time."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from filelock import Timeout
from mlflow.tracking import MlflowClient

from pipeline.errors import UserError
from pipeline.tracking.outbox import Outbox, first_group, is_alive, outbox_folder
from pipeline.tracking.server import absolute, cause, check_server, is_lasting, shown

ATTEMPTS, SECONDS_BETWEEN = 3, 0.5


@dataclass(frozen=True)
class Sent:
    """What became of one run's leftovers: how many were sent and how many are left, and why."""

    run_id: str
    server: str
    sent: int
    left: int
    problem: str | None = None


def send_leftovers(uri: str | None = None) -> Iterator[Sent]:
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
            with outbox.hold(writer["uri"]):
                if uri is None:
                    outbox.take_back_refused()
                yield _send(outbox, writer["uri"])
        except Timeout:
            continue


def _send(outbox: Outbox, uri: str) -> Sent:
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
    return Sent(outbox.run_id, shown(uri), sent, len(entries) + refused, problem)
