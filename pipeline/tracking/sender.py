"""What is logged goes to the server by a thread of its own, so that training never waits for it.

Where the server is away, entries wait in the outbox on disk, and whoever has to know them there waits for `flush`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from filelock import Timeout
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.system.console import duration, say, warn
from pipeline.system.errors import UserError
from pipeline.tracking.outbox import Entry, Outbox, first_group, outbox_folder
from pipeline.tracking.server import SEND, Unreachable, cause, check_server, is_lasting, patience_seconds, shown

Answer = TypeVar("Answer")
SECONDS_BEFORE_SAYING = 3.0
LONGEST_PAUSE_SECONDS = 5.0
SECONDS_FOR_ANOTHER_SENDER = 60.0
_senders: dict[str, "Sender"] = {}  # of each run that is open in this process


class Sender:
    """Sends the entries of an outermost run and of those nested in it, in order, as long as that is open."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Outbox, Entry]] = deque()
        self._held: dict[str, tuple[Outbox, ExitStack]] = {}
        self._alone = 0  # so many entries at the front are sent one by one
        self._away_since: float | None = None
        self._cause = ""
        self._said = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def add(self, run_id: str) -> None:
        """Take over the outbox of a run, with what an earlier process may have left in it."""
        outbox, hold = Outbox(run_id), ExitStack()
        try:
            hold.enter_context(outbox.lock(self._uri, SECONDS_FOR_ANOTHER_SENDER))
        except Timeout:
            raise UserError(f"Another process logs to run {run_id}; wait for its end, or stop it.") from None
        self._held[run_id] = outbox, hold
        for entry in outbox.read():
            self._append(outbox, entry)

    def drop(self, run_id: str) -> None:
        """Let go of a run's outbox, unless something in it still waits."""
        outbox, hold = self._held[run_id]
        with self._changed:
            if any(other is outbox for other, _ in self._waiting):
                return
        hold.close()
        del self._held[run_id]

    def enqueue(self, run_id: str, kind: str, content: Mapping[str, Any], copied: Path | None = None) -> None:
        """Keep something to be said, to be sent as soon as the server takes it."""
        outbox = self._held[run_id][0]
        with self._changed:
            entry = Entry(outbox.next_number(), kind, content)
        try:
            outbox.write(entry, copied)
        except OSError:  # on a full disk, what is small is sent from memory, lest the run cannot even be ended
            if copied is not None:
                raise
        self._append(outbox, entry)

    def flush(self, patience: float) -> None:
        """Wait until all that was put is at the server; Unreachable if that is away for longer than `patience`."""
        started = time.monotonic()
        said = False
        with self._changed:
            while self._waiting:
                away = time.monotonic() - max(started, self._away_since or started)
                if self._away_since is not None and away >= patience:
                    raise Unreachable(
                        f"The tracking server at {shown(self._uri)} is away ({self._cause}); what was logged is kept "
                        f"in {outbox_folder()}: when the server is back, send it with {SEND}."
                    )
                if self._away_since is not None and not said and away >= SECONDS_BEFORE_SAYING:
                    said = True
                    say(_waiting(self._uri, self._cause, patience))
                self._changed.wait(0.2)

    def end(self) -> None:
        """Stop; what is not sent stays in the outbox."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)  # it may be in a call that the server does not answer

    def _append(self, outbox: Outbox, entry: Entry) -> None:
        with self._changed:
            self._waiting.append((outbox, entry))
            self._changed.notify_all()

    def _work(self) -> None:
        pause = 0.5
        while (chosen := self._choose()) is not None:
            outbox, group = chosen
            try:
                outbox.send(MlflowClient(self._uri), group)
            except Exception as error:  # whatever it is, what comes after has to be sent as well
                if is_lasting(error):
                    self._refused(outbox, group, error)
                else:
                    self._hindered(error, pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                pause = 0.5
                self._taken(outbox, group)
        for _, hold in self._held.values():
            hold.close()

    def _choose(self) -> tuple[Outbox, list[Entry]] | None:
        """What to send next, in one call; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._ended:
                return None
            outbox = self._waiting[0][0]
            of_run = (entry for _, entry in takewhile(lambda waiting: waiting[0] is outbox, self._waiting))
            group = [next(of_run)] if self._alone else first_group(of_run)
            return outbox, group

    def _taken(self, outbox: Outbox, group: list[Entry]) -> None:
        for entry in group:
            outbox.remove(entry)
        with self._changed:
            back, self._said, self._away_since = self._said, False, None
            self._forget(len(group))
        if back:
            say(f"The tracking server at {shown(self._uri)} is back; what was kept is sent.")

    def _refused(self, outbox: Outbox, group: list[Entry], error: Exception) -> None:
        if len(group) > 1:  # the others are not to suffer for the one
            self._alone = len(group)
            return
        place = outbox.set_aside(group[0])
        with self._changed:
            self._away_since = None
            self._forget(1)
        warn(
            f"The tracking server at {shown(self._uri)} refuses what was logged to run {outbox.run_id} "
            f"({cause(error)}); it was set aside in {place}."
        )

    def _forget(self, number: int) -> None:
        for _ in range(number):
            self._waiting.popleft()
        self._alone = max(0, self._alone - number)
        self._changed.notify_all()

    def _hindered(self, error: Exception, pause: float) -> None:
        now = time.monotonic()
        with self._changed:
            self._away_since = self._away_since or now
            self._cause = cause(error)
            tell = not self._said and now - self._away_since >= SECONDS_BEFORE_SAYING
            self._said = self._said or tell
            self._changed.notify_all()
        if tell:
            warn(
                f"The tracking server at {shown(self._uri)} is away ({self._cause}); work goes on, and what is logged "
                f"is kept in {outbox_folder()}."
            )
        with self._changed:
            self._changed.wait_for(lambda: self._ended, timeout=pause)


@contextmanager
def sending(run_id: str, within: str | None = None) -> Iterator[Sender]:
    """Within the block, what is logged to the run goes through its outbox, by the sender of the run `within`.

    At the end nothing is waited for: what is not sent by then stays in the outbox.
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
    """Say something of a run, by its outbox; to one that is not open in this process at once, waiting for it."""
    if run_id in _senders:
        _senders[run_id].enqueue(run_id, kind, content, copied)
        return
    with sending(run_id) as sender:
        sender.enqueue(run_id, kind, content, copied)
        sender.flush(patience_seconds())


def flush(run_id: str) -> None:
    """Wait until all that was logged to a run that is open here is at the server; Unreachable if it stays away."""
    if run_id in _senders:
        _senders[run_id].flush(patience_seconds())


def call_server(call: Callable[[], Answer]) -> Answer:
    """What `call` gives, asked again as long as the server is away; Unreachable if that is too long.

    An error for which the server is not away is raised when it comes again.
    """
    uri, patience = mlflow.get_tracking_uri(), patience_seconds()
    started = time.monotonic()
    was_there = said = False
    while True:
        try:
            return call()
        except (MlflowException, OSError) as error:
            if is_lasting(error):
                raise
            problem = _problem(uri)
            if problem is None and was_there:
                raise
            was_there = problem is None
            away = time.monotonic() - started
            if problem is not None:
                if away >= patience:
                    raise Unreachable(f"{problem} Run the same command again when it is back.") from None
                if not said and away >= SECONDS_BEFORE_SAYING:
                    said = True
                    say(_waiting(uri, cause(error), patience))
                time.sleep(1.0)


def _problem(uri: str) -> str | None:
    try:
        check_server(uri)
    except UserError as error:
        return str(error)
    return None


def _waiting(uri: str, why: str, patience: float) -> str:
    return f"The tracking server at {shown(uri)} is away ({why}); waiting for it, {duration(patience)} at most."
