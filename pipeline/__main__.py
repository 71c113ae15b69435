"""Housekeeping: `python -m pipeline cache list|verify|clear` lists, checks and removes the stores in the cache,
`python -m pipeline tracking send` sends what was logged while the tracking server was away, and `python -m pipeline
recipe` prints every key of the recipe."""

import argparse
import importlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline.system.errors import report_missing_packages

with report_missing_packages():
    from rich.filesize import decimal

    from pipeline.cache.location import cache_folder, report_unwritable
    from pipeline.cache.maintenance import DAMAGED, Entry, clear, list_entries, verify
    from pipeline.recipe.reference import reference
    from pipeline.system.console import (
        OUTPUT_CLOSED_STATUS,
        OutputClosed,
        duration,
        guarded_output,
        say,
        table,
        warn,
    )
    from pipeline.system.disk import free_bytes
    from pipeline.system.errors import UserError
    from pipeline.system.machine import check_system

SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
RUNS_SHOWN = 2


class Parser(argparse.ArgumentParser):
    """One that reports a mistake in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog}: {message}; --help tells more.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code: 0, 1 if a store is damaged, or 2 for what the user has to fix."""
    parser = Parser(prog="python -m pipeline", description=__doc__, allow_abbrev=False)
    things = parser.add_subparsers(required=True, metavar="THING")
    add_cache_commands(things)
    tracking = things.add_parser("tracking", help="what was logged").add_subparsers(required=True, metavar="send")
    send = tracking.add_parser("send", help="send what was logged while the tracking server was away")
    send.set_defaults(command=_send)
    keys = things.add_parser("recipe", help="every key of the recipe, in Markdown, as in docs/recipe.md")
    keys.set_defaults(command=_print_reference)
    try:
        check_system()
        given = parser.parse_args(arguments)
        with report_unwritable():
            return int(given.command(given))
    except UserError as error:
        warn(str(error))
        return 2
    except OutputClosed:
        return OUTPUT_CLOSED_STATUS
    except KeyboardInterrupt:
        return 130


def _print_reference(given: argparse.Namespace) -> int:
    say(reference().removesuffix("\n"))
    return 0


def _send(given: argparse.Namespace) -> int:
    """Send what processes that have ended left in the outbox."""
    # By name, since MLflow takes seconds to load, and the other commands do without it.
    results = list(importlib.import_module("pipeline.tracking.contact").send_leftovers())
    for run in results:
        if run.sent:
            say(f"Sent {run.sent} entries of run {run.run_id} to {run.server}.")
        if run.problem:
            warn(f"{run.left} entries of run {run.run_id} for {run.server} are left. {run.problem}")
    if not results:
        say("Nothing is left to be sent.")
    return 2 if any(run.left for run in results) else 0


def add_cache_commands(things: "argparse._SubParsersAction[Any]") -> None:
    """Add `cache` and its commands to the command line; each sets `command`, a function that gives the exit code."""
    commands = things.add_parser("cache", help="the stores in the cache").add_subparsers(
        required=True, metavar="list|verify|clear"
    )
    commands.add_parser("list", help="all stores, with their sizes and runs").set_defaults(command=_list)
    checking = commands.add_parser("verify", help="check the contents of all stores; exit code 1 if any is damaged")
    checking.add_argument("--remove", action="store_true", help="remove the damaged ones")
    checking.set_defaults(command=_verify)
    clearing = commands.add_parser("clear", help="remove what no process is using; all of it without options")
    clearing.add_argument(
        "--older-than", type=_read_age, metavar="AGE", help="what was not used for this long: 12h, 30d, 2w"
    )
    clearing.add_argument(
        "--max-gb", type=_read_gb, metavar="GB", help="the least recently used, until the rest takes no more than this"
    )
    clearing.set_defaults(command=_clear)


def _list(given: argparse.Namespace) -> int:
    entries = list_entries()
    now = time.time()
    columns = ("kind", "key", "size", "last used", "made from", "used by runs", "state")
    rows = [
        (
            entry.kind,
            entry.path.name[:12],
            decimal(entry.size_bytes),
            _format_age(now - entry.used),
            entry.made_from,
            _format_runs(entry.runs),
            entry.state,
        )
        for entry in entries
    ]
    if rows:
        table(f"Cache {cache_folder()}", columns, rows)
    _say_total(entries)
    return 0


def _verify(given: argparse.Namespace) -> int:
    checked = damaged = 0
    for entry, damage in verify(given.remove):
        checked += 1
        if damage:
            damaged += 1
            say(f"Damaged: {entry.kind} {entry.path.name} ({damage}){'; removed' if given.remove else ''}.")
    if damaged and not given.remove:
        say(f"{damaged} of {checked} stores are damaged; they are built again when they are needed, or --remove them.")
    else:
        say(f"{damaged} of {checked} stores {'were' if damaged else 'are'} damaged.")
    return 1 if damaged else 0


def _clear(given: argparse.Namespace) -> int:
    freed_bytes = 0
    for entry, why in clear(given.older_than, None if given.max_gb is None else given.max_gb * 1e9):
        if why:
            say(f"Kept {entry.kind} {entry.path.name} ({decimal(entry.size_bytes)}): {why}.")
        else:
            say(f"Removed {entry.kind} {entry.path.name} ({decimal(entry.size_bytes)}).")
            freed_bytes += entry.size_bytes
    say(f"Freed {decimal(freed_bytes)}.")
    _say_total(list_entries())
    return 0


def _say_total(entries: list[Entry]) -> None:
    total = decimal(sum(entry.size_bytes for entry in entries))
    damaged = sum(entry.state == DAMAGED for entry in entries)
    note = f", {damaged} damaged" if damaged else ""
    say(f"{total} in {cache_folder()}{note}; {decimal(free_bytes(cache_folder()))} free on its disk.")


def _read_age(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no age; give a number of hours, days or weeks, as 12h, 30d or 2w")
    return float(found[1]) * SECONDS[found[2]]


def _read_gb(text: str) -> float:
    if re.fullmatch(r"\d+(\.\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text} is no size; give a number of GB, as 20 or 0.5")
    return float(text)


def _format_age(seconds: float) -> str:
    return f"{seconds / SECONDS['d']:.0f} d" if seconds >= 2 * SECONDS["d"] else duration(max(seconds, 0.0))


def _format_runs(runs: list[str]) -> str:
    shown = ", ".join(run[:8] for run in runs[-RUNS_SHOWN:])
    return f"{shown} and {len(runs) - RUNS_SHOWN} more" if len(runs) > RUNS_SHOWN else shown


if __name__ == "__main__":
    with report_missing_packages(), guarded_output():
        sys.exit(main())
