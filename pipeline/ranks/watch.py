"""A thread in each of several processes that hears what happens to the others, whatever its own process does meanwhile.

They tell one another through torch's store: that they are alive, that one failed and why, that one was asked to stop,
and that the leader has ended.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.system.errors import Interrupted, UserError
from pipeline.system.processes import identity, is_alive

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_BETWEEN_BEATS = 2.0
# A process on another machine that has not been heard of for so long is taken to be gone.
SILENT_SECONDS = 60.0
# A helper whose leader has ended, or whose store is gone, leaves after so long whatever it is doing.
SECONDS_TO_LEAVE = 10.0
FAILED, STOP, ENDED, MEMBER, BEAT = "failed", "stop", "ended", "member", "beat"


@dataclass(frozen=True)
class Failure:
    """Why the processes cannot go on: that of process `number`, in a sentence; `is_mistake` if the user can mend it,
    and `is_loss` if the process is gone."""

    number: int
    sentence: str
    is_mistake: bool
    is_loss: bool = False

    @property
    def error(self) -> Exception:
        """What the other processes raise."""
        kind = Interrupted if self.is_loss else UserError if self.is_mistake else HelperError
        return kind(self.sentence)


class HelperError(RuntimeError):
    """An error of another process that is nobody's mistake."""


class Watch:
    """Watches over the process `number` of `processes`, which see the same `store`, until it is stopped.

    `failure` is what one of them has met; then `wake` is called, once, to end what waits for the others. A leader that
    is to stop gets SIGTERM, and so does one whose store is gone, for then the launcher is.
    """

    def __init__(self, store: Any, number: int, processes: int, wake: Callable[[], None]) -> None:
        self.failure: Failure | None = None
        self.has_ended = False
        self.is_asked_to_stop = False
        self._store, self._number, self._processes, self._wake = store, number, processes, wake
        self._members: dict[int, str] = {}
        self._heard: dict[int, tuple[int, float]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)

    def start(self) -> None:
        """Tell the others who this process is, and begin."""
        self._store.set(f"{MEMBER}/{self._number}", identity())
        self._thread.start()

    def stop(self) -> None:
        """Look no further."""
        self._stopped.set()
        self._thread.join(timeout=5.0)

    def name_of(self, number: int) -> str:
        """Process `number` as it is called in sentences."""
        host = self._members.get(number, "").rpartition(":")[0].rpartition(":")[0]
        where = f" on {host}" if host and host != socket.gethostname() else ""
        return f"process {number} of {self._processes}{where}"

    def wait_for_failure(self, seconds: float) -> Failure | None:
        """The failure of one of the processes, waited for so long, since an error is felt before its cause is heard."""
        until = time.monotonic() + seconds
        while self.failure is None and not self.has_ended and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS / 4)
        return self.failure

    def _watch(self) -> None:
        beat_at, stop_is_told = 0.0, False
        while not self._stopped.wait(SECONDS_BETWEEN_LOOKS):
            try:
                if time.monotonic() - beat_at >= SECONDS_BETWEEN_BEATS:
                    beat_at = time.monotonic()
                    self._store.add(f"{BEAT}/{self._number}", 1)
                if self.is_asked_to_stop and not stop_is_told:
                    self._store.set(STOP, str(self._number))
                    stop_is_told = True
                self._look()
            except RuntimeError:  # the store is gone, and the launcher that kept it
                self._leave_without_store()
                return
            if self.has_ended and self._number:
                self._leave_late()
                return

    def _look(self) -> None:
        if self._number and self._store.check([ENDED]):
            self.has_ended = True
            return
        if self.failure is None and self._store.check([FAILED]):
            self._hear(Failure(**json.loads(self._store.get(FAILED))))
        if not self._number and not self.is_asked_to_stop and self._store.check([STOP]):
            self.is_asked_to_stop = True
            os.kill(os.getpid(), signal.SIGTERM)
        for other in range(self._processes) if not self._number else (0,):
            if other != self._number and self.failure is None and self._is_lost(other):
                self._lose(other)

    def _hear(self, failure: Failure) -> None:
        self.failure = failure
        self._wake()

    def _lose(self, other: int) -> None:
        if not other:  # without its leader a helper has nothing to do
            os._exit(1)
        sentence = f"{self.name_of(other).capitalize()} is gone: it was killed, or its machine went away."
        self._hear(Failure(other, f"{sentence} The same command resumes from the last backup.", True, is_loss=True))
        tell_failure(self._store, self.failure)

    def _is_lost(self, other: int) -> bool:
        """Whether a process that was there is there no longer."""
        if other not in self._members:
            if not self._store.check([f"{MEMBER}/{other}"]):
                return False
            self._members[other] = self._store.get(f"{MEMBER}/{other}").decode()
        alive = is_alive(self._members[other])
        if alive is not None:
            return not alive
        beats, now = self._store.add(f"{BEAT}/{other}", 0), time.monotonic()
        if self._heard.get(other, (-1, now))[0] != beats:
            self._heard[other] = beats, now
        return now - self._heard[other][1] > SILENT_SECONDS

    def _leave_without_store(self) -> None:
        if not self._number:
            if not self._stopped.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
            return
        # The leader may still save its work, for which it needs its helpers.
        until = time.monotonic() + SECONDS_TO_LEAVE
        while time.monotonic() < until and is_alive(self._members.get(0, identity())) is not False:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    def _leave_late(self) -> None:
        """The leader has ended: leave by force if this process is still at its work then."""
        if not self._stopped.wait(SECONDS_TO_LEAVE):
            os._exit(1)


def tell_failure(store: Any, failure: Failure | None) -> None:
    """Let all processes hear of a failure, unless they have heard of another; nobody hears it if the store is gone."""
    if failure is not None:
        with suppress(RuntimeError):
            store.compare_set(FAILED, "", json.dumps(failure.__dict__))
