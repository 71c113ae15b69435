"""Sends entries of outboxes to the tracking server, in order; one that it refuses does not block the others."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.tracking.outbox import Entry, Outbox, Part, first_group
from pipeline.tracking.server import is_lasting


class Queue:
    """Entries that wait to be sent. `changed` guards it, and is notified of every change."""

    def __init__(self, entries: Iterable[tuple[Outbox, Entry]] = (), is_complete: bool = False) -> None:
        self.changed = threading.Condition()
        self._waiting = deque(entries)
        self._is_complete = is_complete  # none will be added
        self._alone = 0  # so many entries at the front are sent one by one
        self._is_stopped = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more will be sent."""
        return self._is_stopped

    def append(self, outbox: Outbox, entry: Entry) -> None:
        """Add an entry at the end."""
        with self.changed:
            self._waiting.append((outbox, entry))
            self.changed.notify_all()

    def stop(self) -> None:
        """Have nothing more sent, whether something waits or not."""
        with self.changed:
            self._is_stopped = True
            self.changed.notify_all()

    def holds(self, outbox: Outbox) -> bool:
        """Whether an entry of this outbox waits."""
        with self.changed:
            return any(other is outbox for other, _ in self._waiting)

    def next_group(self) -> tuple[Outbox, list[Entry]] | None:
        """What to send next, in one call, as soon as there is something; None at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self._waiting or self._is_stopped or self._is_complete)
            if self._is_stopped or not self._waiting:
                return None
            outbox = self._waiting[0][0]
            of_run = (entry for _, entry in takewhile(lambda waiting: waiting[0] is outbox, self._waiting))
            return outbox, [next(of_run)] if self._alone else first_group(of_run)

    def split(self, number: int) -> None:
        """Have the first `number` entries sent one by one."""
        self._alone = number

    def remove(self, number: int) -> None:
        """Remove the first `number` entries."""
        with self.changed:
            for _ in range(number):
                self._waiting.popleft()
            self._alone = max(0, self._alone - number)
            self.changed.notify_all()


@dataclass(frozen=True)
class Delivery:
    """What a call to the server did: it took `sent` entries; or refused one, for `error`, which was set aside at
    `refused`; or it was away or hindered, by `error`."""

    run_id: str
    sent: int = 0
    refused: Path | None = None
    error: Exception | None = None


def deliver(uri: str, queue: Queue) -> Iterator[Delivery]:
    """Send what waits, call by call, until the queue ends. After an error that may pass, the next call tries the same
    entries again.

    Entries leave the queue once the caller has dealt with what is yielded.
    """
    while (chosen := queue.next_group()) is not None:
        outbox, group = chosen
        client = MlflowClient(uri)
        try:
            outbox.send(client, group)
        except Exception as error:  # after any error the entries that follow must still be sent
            if not is_lasting(error):
                yield Delivery(outbox.run_id, error=error)
            elif len(group) > 1:  # one bad entry must not block the others
                queue.split(len(group))
            else:
                yield from _deliver_apart(client, queue, outbox, group[0], error)
        else:
            for entry in group:
                outbox.remove(entry)
            yield Delivery(outbox.run_id, sent=len(group))
            queue.remove(len(group))


def _deliver_apart(
    client: MlflowClient, queue: Queue, outbox: Outbox, entry: Entry, error: Exception
) -> Iterator[Delivery]:
    """Send an entry that was refused in parts, so that one bad value does not take the others with it."""
    parts = outbox.parts(entry)
    try:
        refused = _refused_parts(client, outbox, entry, parts) if len(parts) > 1 and _is_there(client, outbox) else None
    except Exception as away:  # all of it is sent once more
        yield Delivery(outbox.run_id, error=away)
        return
    if refused == []:
        outbox.remove(entry)
        yield Delivery(outbox.run_id, sent=1)
    else:
        yield Delivery(outbox.run_id, refused=outbox.set_aside(entry, refused), error=error)
    queue.remove(1)


def _is_there(client: MlflowClient, outbox: Outbox) -> bool:
    """Whether the server takes anything for this run at all: it knows it, and it was not deleted."""
    try:
        return bool(client.get_run(outbox.run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if not is_lasting(error):
            raise
        return False


def _refused_parts(client: MlflowClient, outbox: Outbox, entry: Entry, parts: Sequence[Part]) -> list[Part]:
    """Send parts of an entry, each half that is refused in halves; gives those that are refused alone."""
    try:
        outbox.send_parts(client, entry, parts)
    except Exception as error:
        if not is_lasting(error):
            raise
        if len(parts) == 1:
            return list(parts)
        middle = len(parts) // 2
        halves = parts[:middle], parts[middle:]
        return [one for half in halves for one in _refused_parts(client, outbox, entry, half)]
    return []
