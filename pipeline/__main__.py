"""Housekeeping: `python -m pipeline tracking send` sends what was logged while the tracking server was away."""

import argparse
import sys
from collections.abc import Sequence

from pipeline.console import say, warn
from pipeline.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; gives the exit code: 0, or 2 for what the user has to see to."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    things = parser.add_subparsers(required=True, metavar="THING")
    tracking = things.add_parser("tracking", help="what was logged").add_subparsers(required=True, metavar="COMMAND")
    send = tracking.add_parser("send", help="send what was logged while the tracking server was away")
    send.set_defaults(command=tracking_send)
    given = parser.parse_args(arguments)
    try:
        return int(given.command(given))
    except UserError as error:
        warn(str(error))
        return 2


def tracking_send(given: argparse.Namespace) -> int:
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
