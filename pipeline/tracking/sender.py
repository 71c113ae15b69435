"""Sends what is logged to the server in a thread of its own, so that training never waits for it.

If the server is away, entries wait in the outbox on disk; `flush` waits until they are at the server.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from filelock import Timeout
from mlflow.exceptions import MlflowException

from pipeline.system.console import duration, say, warn
from pipeline.system.errors import UserError
from pipeline.tracking.delivery import Delivery, Queue, deliver
from pipeline.tracking.outbox import Entry, Outbox, outbox_folder
from pipeline.tracking.server import SEND, Unreachable, cause, check_server, is_lasting, patience_seconds, shown
from pipeline.tracking.storage.artifact_store import store_trouble

Answer = TypeVar("Answer")
SECONDS_BEFORE_REPORTING = 3.0
SHORTEST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
SECONDS_BETWEEN_QUESTIONS = 1.0
SECONDS_FOR_ANOTHER_SENDER = 60.0
_senders: dict[str, "Sender"] = {}  # of each run that is open in this process


class Sender:
    """Sends the entries of an outermost run, and of those nested in it, in order, while it is open."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._queue = Queue()
        self._locked: dict[str, tuple[Outbox, ExitStack]] = {}
        self._away_since: float | None = None
        self._why = ""
        self._is_reported = False
        self._thread = threading.Thread(target=self._send, name="tracking", daemon=True)
        self._thread.start()

    def add(self, run_id: str) -> None:
        """Lock the outbox of a run, and send what an earlier process may have left in it."""
        outbox, lock = Outbox(run_id), ExitStack()
        try:
            lock.enter_context(outbox.lock(self._uri, SECONDS_FOR_ANOTHER_SENDER))
        except Timeout:
            raise UserError(f"Another process logs to run {run_id}; wait for its end, or stop it.") from None
        self._locked[run_id] = outbox, lock
        for entry in outbox.read():
            self._queue.append(outbox, entry)

    def drop(self, run_id: str) -> None:
        """Unlock a run's outbox, unless something in it still waits."""
        outbox, lock = self._locked[run_id]
        if not self._queue.holds(outbox):
            lock.close()
            del self._locked[run_id]

    def enqueue(self, run_id: str, kind: str, content: Mapping[str, Any], copied: Path | None = None) -> None:
        """Write an entry to the outbox, to be sent as soon as the server takes it."""
        outbox = self._locked[run_id][0]
        with self._queue.changed:
            entry = Entry(outbox.next_number(), kind, content)
        try:
            outbox.write(entry, copied)
        except OSError:  # on a full disk, small entries are sent from memory; otherwise the run could not be ended
            if copied is not None:
                raise
        self._queue.append(outbox, entry)

    def flush(self, patience: float) -> None:
        """Wait until the server has taken all entries; Unreachable if it is away for longer than `patience`."""
        started = time.monotonic()
        is_reported = False
        with self._queue.changed:
            while len(self._queue):
                away = time.monotonic() - max(started, self._away_since or started)
                if self._away_since is not None and away >= patience:
                    raise Unreachable(
                        f"{self._why}; what was logged is kept in {outbox_folder()}: when that has passed, send it "
                        f"with {SEND}."
                    )
                if self._away_since is not None and not is_reported and away >= SECONDS_BEFORE_REPORTING:
                    is_reported = True
                    say(_waiting(self._why, patience))
                self._queue.changed.wait(0.2)

    def end(self) -> None:
        """Stop; what is not sent stays in the outbox."""
        self._queue.stop()
        self._thread.join(timeout=1.0)  # it may be in a call that the server does not answer

    def _send(self) -> None:
        pause = SHORTEST_PAUSE_SECONDS
        for call in deliver(self._uri, self._queue):
            if call.error is None or call.refused is not None:
                pause = SHORTEST_PAUSE_SECONDS
                self._report_answer(call)
            else:
                self._report_away(call.error)
                with self._queue.changed:
                    self._queue.changed.wait_for(lambda: self._queue.is_stopped, timeout=pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        for _, lock in self._locked.values():
            lock.close()

    def _report_answer(self, call: Delivery) -> None:
        with self._queue.changed:
            self._away_since = None
            is_back = self._is_reported and call.sent > 0
            self._is_reported = self._is_reported and not is_back
        if is_back:
            say(f"The tracking server at {shown(self._uri)} is back; what was kept is sent.")
        if call.error is not None:
            warn(
                f"The tracking server at {shown(self._uri)} refuses what was logged to run {call.run_id} "
                f"({cause(call.error)}); it was set aside in {call.refused}."
            )

    def _report_away(self, error: Exception) -> None:
        now = time.monotonic()
        with self._queue.changed:
            self._away_since = self._away_since or now
            self._why = _what_is_away(self._uri, error)
            is_due = not self._is_reported and now - self._away_since >= SECONDS_BEFORE_REPORTING
            self._is_reported = self._is_reported or is_due
            self._queue.changed.notify_all()
        if is_due:
            warn(f"{self._why}; work goes on, and what is logged is kept in {outbox_folder()}.")


@contextmanager
def sending(run_id: str, within: str | None = None) -> Iterator[Sender]:
    """Within the block, what is logged to the run goes through its outbox, by the sender of the run `within`.

    At the end nothing is waited for: what is not sent stays in the outbox.
    """
    sender = _senders.get(within or "")
    with ExitStack() as stack:
        if sender is None:
            sender = Sender(mlflow.get_tracking_uri())
            stack.callback(sender.end)
        sender.add(run_id)
        stack.callback(sender.drop, run_id)
        _senders[run_id] = sender
        stack.callback(_senders.pop, run_id)
        yield sender


def enqueue(run_id: str, kind: str, content: Mapping[str, Any], copied: Path | None = None) -> None:
    """Write an entry to a run's outbox; if the run is not open in this process, wait until the server has taken it."""
    if run_id in _senders:
        _senders[run_id].enqueue(run_id, kind, content, copied)
        return
    with sending(run_id) as sender:
        sender.enqueue(run_id, kind, content, copied)
        sender.flush(patience_seconds())


def flush(run_id: str) -> None:
    """Wait until all that was logged to a run that is open here is at the server; Unreachable if that stays away."""
    if run_id in _senders:
        _senders[run_id].flush(patience_seconds())


def call_server(call: Callable[[], Answer]) -> Answer:
    """What `call` returns, called again while the server is away; Unreachable if that is too long.

    An error of a server that can be reached is raised when it occurs again. UserError for what the store of artifacts
    refuses, OSError for what it has not.
    """
    uri, patience = mlflow.get_tracking_uri(), patience_seconds()
    started = time.monotonic()
    was_there = is_reported = False
    while True:
        try:
            return call()
        except Exception as error:  # some stores' libraries are not imported here
            trouble = store_trouble(error)
            if trouble is None and (not isinstance(error, MlflowException | OSError) or is_lasting(error)):
                raise
            if trouble is not None and trouble.refusal is not None:
                raise trouble.refusal from None
            problem, what = _problem(uri), _what_is_away(uri, error)
            if problem is None and trouble is not None:
                problem, what = f"{trouble.what}.", trouble.what
            if problem is None and was_there:
                raise
            was_there = problem is None
            away = time.monotonic() - started
            if problem is not None:
                if away >= patience:
                    raise Unreachable(f"{problem} Run the same command again when it is back.") from None
                if not is_reported and away >= SECONDS_BEFORE_REPORTING:
                    is_reported = True
                    say(_waiting(what, patience))
                time.sleep(SECONDS_BETWEEN_QUESTIONS)


def _problem(uri: str) -> str | None:
    try:
        check_server(uri)
    except UserError as error:
        return str(error)
    return None


def _what_is_away(uri: str, error: Exception) -> str:
    trouble = store_trouble(error)
    if trouble is not None and not trouble.is_behind:
        return trouble.what
    return f"The tracking server at {shown(uri)} is away ({cause(error)})"


def _waiting(what: str, patience: float) -> str:
    return f"{what}; waiting for it, {duration(patience)} at most."
