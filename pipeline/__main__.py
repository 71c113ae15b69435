"""Housekeeping: `python -m pipeline cache list|verify|clear` looks after the stores in the cache, and
`python -m pipeline tracking send` sends what was logged while the tracking server was away."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.cache_command import add_cache_commands
from pipeline.console import say, warn
from pipeline.errors import UserError


class Parser(argparse.ArgumentParser):
    """One that tells what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{self.prog}: {message}; --help tells more.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; gives the exit code: 0, 1 where something is damaged, or 2 for what the user has
    to see to."""
    parser = Parser(prog="python -m pipeline", description=__doc__, allow_abbrev=False)
    things = parser.add_subparsers(required=True, metavar="THING")
    add_cache_commands(things)
    tracking = things.add_parser("tracking", help="what was logged").add_subparsers(required=True, metavar="send")
    send = tracking.add_parser("send", help="send what was logged while the tracking server was away")
    send.set_defaults(command=_send)
    try:
        given = parser.parse_args(arguments)
        return int(given.command(given))
    except UserError as error:
        warn(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


def _send(given: argparse.Namespace) -> int:
    """Send what processes that are no more have left in the outbox."""
    from pipeline.tracking.leftovers import send_leftovers

    results = list(send_leftovers())
    for run in results:
        if run.sent:
            say(f"Sent {run.sent} entries of run {run.run_id} to {run.server}.")
        if run.problem:
            warn(f"{run.left} entries of run {run.run_id} for {run.server} are left. {run.problem}")
    if not results:
        say("Nothing is left to be sent.")
    return 2 if any(run.left for run in results) else 0


if __name__ == "__main__":
    sys.exit(main())
