"""Housekeeping: `python -m pipeline cache list|verify|clear` looks after the stores in the cache."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from pipeline.cache_command import add_cache_commands
from pipeline.console import warn
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
    try:
        given = parser.parse_args(arguments)
        return int(given.command(given))
    except UserError as error:
        warn(str(error))
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
