"""Errors that end a run early without a fault of the program, and the report of a Python without what it needs.

Both doors import this before anything else: it has to run on a Python that is too old for the rest, and bare.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

OLDEST_PYTHON = (3, 11)
OURS = ("pipeline", "stages")


class UserError(Exception):
    """A mistake that the user can fix, reported in one sentence: what is wrong, where, and what to do."""


class Interrupted(UserError):
    """What several processes were doing together was cut short, since one of them is gone. Done again, it resumes."""


class Pruned(Exception):
    """A trial of a sweep was ended because it is not promising; the message says at which value. Nobody's mistake."""


@contextmanager
def report_missing_packages() -> Iterator[None]:
    """Within the block a package that this Python lacks ends the command with a sentence and exit code 2; before it, so
    does a Python that is too old."""
    version = ".".join(map(str, sys.version_info[:2]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        _end(
            f"{sys.executable} is Python {version}, and Thaw needs {needed} or newer; activate the environment that "
            "has it (. .venv/bin/activate), or make one (make install PYTHON=python3.11)."
        )
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in OURS:
            raise
        _end(
            f"{sys.executable} (Python {version}) lacks the package {package}; activate the environment that has it "
            "(. .venv/bin/activate), or install what is needed (python -m pip install -r requirements.txt)."
        )


def _end(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(2)
