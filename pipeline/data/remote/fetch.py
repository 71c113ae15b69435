"""Brings the pictures of a set into the cache: in parallel, each once. What was killed goes on where it was.

A server that is away at the start ends it with a sentence; one that goes away later is waited for. A picture that a
server does not give, although it gives others, is named with the reason.
"""

import os
import shutil
import time
from collections.abc import Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from rich.filesize import decimal

from pipeline.cache.location import cache_folder, make_folder, report_unwritable, share
from pipeline.cache.maintenance import PICTURES
from pipeline.cache.markers import USES, beside, note_open
from pipeline.cache.store import MAKE_ROOM, locked
from pipeline.data.readers.listing import Listing
from pipeline.data.remote.addresses import pictures_folder, split_address, without_secrets
from pipeline.data.remote.fetched import ABSENT, UNFINISHED, Fetched, FetchedFiles, open_fetched
from pipeline.data.remote.fetcher import GIB, Brought, Fetcher, TooMuch
from pipeline.data.remote.transfer import check_system
from pipeline.system.console import duration, say, track, warn
from pipeline.system.disk import report_full_disk
from pipeline.system.errors import UserError

FETCHED_AT_ONCE = 32
SECONDS_BETWEEN_NOTES = 1.0
NEVER = float("inf")
_WAITING = "Waiting for another process that is fetching pictures."


def fetch_listing(listing: Listing, max_gib: float, recheck_hours: float) -> Listing:
    """`listing` with its pictures in the cache, and the reasons why some are `missing`; one of pictures on disk as it
    is. Those that were last asked for more than `recheck_hours` ago are fetched anew if they have changed.

    UserError if they take more than `max_gib`, or if a server cannot be reached; what came is kept.
    """
    if not listing.addresses:
        return listing
    return replace(listing, missing=fetch_pictures(listing.root, listing.addresses, max_gib, recheck_hours))


def fetch_pictures(
    root: Path, addresses: Mapping[str, str], max_gib: float, recheck_hours: float = NEVER, noun: str = "pictures"
) -> dict[str, str]:
    """Bring what is at `addresses` to their paths below `root`, a folder of the cache; gives the reason for each path
    that is not there at the end. See `fetch_listing`. They are called by `noun` in what is said."""
    folder, oldest = pictures_folder(), time.time() - recheck_hours * 3600
    below = "" if root == folder else f"{root.relative_to(folder).as_posix()}/"
    wanted = {f"{below}{path}": address for path, address in addresses.items()}
    missing: dict[str, str] = {}
    with open_fetched(folder) as fetched:
        if _due(fetched, wanted, oldest)[0]:
            with report_unwritable(), report_full_disk("fetched pictures", folder, MAKE_ROOM), locked(folder, _WAITING):
                missing = _bring(fetched, wanted, oldest, max_gib, noun)
    with suppress(OSError):  # they can be read in a cache that cannot be written
        beside(folder, USES).touch()
        share(beside(folder, USES))
        note_open(cache_folder(), f"{PICTURES}/{PICTURES}")
    return {place.removeprefix(below): reason for place, reason in missing.items()}


def patience_seconds() -> float:
    """How long to wait for a server of pictures that has gone away: `$THAW_FETCH_PATIENCE_SECONDS`, else ten
    minutes."""
    given = os.environ.get("THAW_FETCH_PATIENCE_SECONDS", "600")
    try:
        return float(given)
    except ValueError:
        raise UserError(f"THAW_FETCH_PATIENCE_SECONDS is {given}, which is no number; give seconds, as 600.") from None


def _due(fetched: FetchedFiles, wanted: Mapping[str, str], oldest: float) -> tuple[dict[str, str], dict[str, Fetched]]:
    """(those of `wanted` to be fetched, or asked for since that was before `oldest`; all that are there)."""
    found = {
        place: one for place, one in fetched.find(list(wanted)).items() if one.address == without_secrets(wanted[place])
    }
    due = {
        place: address for place, address in wanted.items() if place not in found or found[place].asked_seconds < oldest
    }
    return due, found


def _bring(
    fetched: FetchedFiles, wanted: Mapping[str, str], oldest: float, max_gib: float, noun: str
) -> dict[str, str]:
    """Fetch what is due, while no other process does; gives the reasons for what is missing."""
    due, found = _due(fetched, wanted, oldest)  # another process may have fetched some meanwhile
    for address in {split_address(one).scheme: one for one in due.values()}.values():
        check_system(address)
    shutil.rmtree(fetched.folder / UNFINISHED, ignore_errors=True)
    make_folder(fetched.folder / UNFINISHED)
    there_bytes = sum(one.bytes for one in found.values())
    fetcher = Fetcher(fetched.folder, max_gib * GIB, there_bytes, patience_seconds())
    started, came, noted = time.monotonic(), list[Fetched](), list[Fetched]()
    missing: dict[str, str] = {}
    unasked: list[str] = []
    changed, last_note = 0, started
    try:
        with closing(_in_any_order(fetcher, due, found, fetched.absences(list(due)))) as brought:
            for one in track(brought, f"fetching {noun}", len(due), "images"):
                if one.missing:
                    missing[one.place] = one.missing
                    noted.append(Fetched(one.place, "", ABSENT, one.missing, time.time()))
                elif one.unasked:
                    unasked.append(one.unasked)
                elif one.file is not None:
                    noted.append(one.file)
                    came += [one.file] if one.came else []
                    changed += one.came and one.place in found
                if time.monotonic() - last_note > SECONDS_BETWEEN_NOTES:
                    fetched.note(noted)
                    noted, last_note = [], time.monotonic()
    except TooMuch:
        done = len({*found, *(one.place for one in came)})
        raise UserError(
            f"The pictures take more than data.max_download_gib = {max_gib:g} allows: {done:,} of {len(wanted):,} are "
            f"fetched and kept in {fetched.folder}; raise it, or name fewer."
        ) from None
    finally:
        fetched.note(noted)
        shutil.rmtree(fetched.folder / UNFINISHED, ignore_errors=True)
    if came:
        size = decimal(sum(one.bytes for one in came))
        words = f", {changed:,} of which had changed" if changed else ""
        say(f"fetched {len(came):,} {noun} ({size}) in {duration(time.monotonic() - started)}{words}")
    if unasked:
        warn(f"{len(unasked):,} {noun} could not be asked for changes ({unasked[0]}); what was fetched before is used.")
    return missing


def _in_any_order(
    fetcher: Fetcher, due: Mapping[str, str], found: Mapping[str, Fetched], absences: Mapping[str, str]
) -> Generator[Brought]:
    """What became of each picture, as soon as it is known."""
    pool = ThreadPoolExecutor(FETCHED_AT_ONCE, "fetching")
    pending: set[Future[Brought]] = set()
    try:
        for place, address in due.items():
            pending.add(pool.submit(fetcher.bring, place, address, found.get(place), absences.get(place, "")))
            if len(pending) >= 4 * FETCHED_AT_ONCE:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
    finally:
        fetcher.stop()
        pool.shutdown(cancel_futures=True)
