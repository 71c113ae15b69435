"""Brings one file after the other into a folder, each whole or not at all, and tells a server that is away from a file
that it does not give."""

import hashlib
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline.cache.location import make_folder, share
from pipeline.data.remote.addresses import split_address, without_secrets
from pipeline.data.remote.fetched import UNFINISHED, Fetched
from pipeline.data.remote.transfer import Absent, Hindered, fetch, has_changed, stamp_of
from pipeline.system.console import duration, say
from pipeline.system.errors import UserError

ATTEMPTS = 4
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
GIB = 2**30


class TooMuch(UserError):
    """The files take more than they may."""


class Away(UserError):
    """A server cannot be reached at the start."""


class Stopped(Exception):
    """Nothing more is to be fetched."""


class Brought(NamedTuple):
    """What became of one file: it is there, as `file`, and `came` now; or it is `missing`, for this reason. If it was
    there and could not be asked for, `unasked` says why."""

    place: str
    file: Fetched | None
    came: bool = False
    missing: str = ""
    unasked: str = ""


@dataclass
class _Server:
    """What is known of a server or bucket: when it `answered` last (None for never), and the address of a file that it
    gave; whether it `is_reported` to be away."""

    name: str
    answered: float | None = None
    good: str = ""
    is_reported: bool = False


@dataclass
class Fetcher:
    """Brings files into `folder`, in any number of threads, as long as they take no more than `max_bytes` beside the
    `taken_bytes` of those that are there; a server that goes away is waited for, for `patience_seconds`."""

    folder: Path
    max_bytes: float
    taken_bytes: int
    patience_seconds: float
    _servers: dict[str, _Server] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Have files that are on their way given up."""
        self._stop.set()

    def bring(self, place: str, address: str, known: Fetched | None, was_missing: str = "") -> Brought:
        """Have what is at `address` at `place` below the folder; if it is there, as `known`, only if it has changed.
        One that `was_missing` when its server was last asked, for this reason, still is if that is away.

        TooMuch if there is no room for it; UserError if its server cannot be reached; Stopped after `stop`.
        """
        if known is not None:
            try:
                now = stamp_of(address)
            except (Absent, Hindered) as error:
                return Brought(place, known, unasked=str(error))
            if not has_changed(known.stamp, now):
                return Brought(place, known._replace(asked_seconds=time.time()))
        server = self._server(address)
        unfinished = self.folder / UNFINISHED / hashlib.sha256(place.encode()).hexdigest()
        try:
            stamp = self._patiently(server, address, unfinished)
        except Absent as absent:
            return Brought(place, known, missing="" if known else str(absent), unasked=str(absent) if known else "")
        except Away:
            if was_missing:
                return Brought(place, None, missing=was_missing)
            raise
        size = unfinished.stat().st_size
        try:
            self._publish(unfinished, place)
            self._give_back([known.bytes] if known else [])
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            return Brought(place, None, missing=f"cannot be kept: {error.strerror}")
        finally:
            unfinished.unlink(missing_ok=True)
        return Brought(place, Fetched(place, without_secrets(address), size, stamp, time.time()), came=True)

    def _patiently(self, server: _Server, address: str, unfinished: Path) -> str:
        """`fetch`, again and again while the server is away; Absent if it gives other files and not this one."""
        pause, attempt = FIRST_PAUSE_SECONDS, 0
        while not self._stop.is_set():
            attempt += 1
            came: list[int] = []
            try:
                stamp = fetch(address, unfinished, partial(self._allow, came))
            except Hindered as error:
                self._give_back(came)
                unfinished.unlink(missing_ok=True)
                if attempt >= ATTEMPTS:
                    self._judge(server, error)
                self._stop.wait(max(pause, min(error.pause_seconds, 6 * LONGEST_PAUSE_SECONDS)))
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except BaseException as error:
                self._give_back(came)
                unfinished.unlink(missing_ok=True)
                if isinstance(error, Absent):
                    server.answered = time.monotonic()
                raise
            else:
                server.answered, server.good, server.is_reported = time.monotonic(), address, False
                return stamp
        raise Stopped

    def _judge(self, server: _Server, error: Hindered) -> None:
        """After several failures: Absent if the server is there for others, UserError if it is away for too long."""
        if server.good:
            with suppress(Hindered):
                with suppress(Absent):
                    stamp_of(server.good)
                server.answered = time.monotonic()
                raise Absent(f"cannot be fetched: {error}") from None
        if server.answered is None:
            raise Away(
                f"The server of pictures {server.name} cannot be reached ({error}); mend the addresses, or run the "
                "same command again when it is there."
            ) from None
        if time.monotonic() - server.answered > self.patience_seconds:
            raise UserError(
                f"The server of pictures {server.name} has gone away ({error}); what was fetched is kept: run the same "
                "command again when it is back."
            ) from None
        with self._guard:
            is_due, server.is_reported = not server.is_reported, True
        if is_due:
            say(
                f"The server of pictures {server.name} is away ({error}); waiting for it, "
                f"{duration(self.patience_seconds)} at most."
            )

    def _server(self, address: str) -> _Server:
        scheme, host, _, _ = split_address(address)
        with self._guard:
            return self._servers.setdefault(f"{scheme}://{host}", _Server(f"{scheme}://{host}"))

    def _allow(self, came: list[int], count: int) -> None:
        if self._stop.is_set():
            raise Stopped
        with self._guard:
            self.taken_bytes += count
            came.append(count)
            if self.taken_bytes > self.max_bytes:
                raise TooMuch(f"they take more than {self.max_bytes / GIB:g} GiB")

    def _give_back(self, came: Iterable[int]) -> None:
        with self._guard:
            self.taken_bytes -= sum(came)

    def _publish(self, unfinished: Path, place: str) -> None:
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        target = self.folder / place
        make_folder(target.parent)
        share(unfinished)
        unfinished.replace(target)
