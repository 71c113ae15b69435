"""Ctrl-C and SIGTERM, put off until what is in hand has been kept."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Written to without a buffer, which the handler could find half-written.
STANDARD_ERROR = 2


def raise_on_signals() -> None:
    """From now on SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


@contextmanager
def put_off() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C and SIGTERM are only noted; what is given says whether one was.

    A second Ctrl-C acts at once. One that was noted raises KeyboardInterrupt at the end of the block at the latest.
    Signals reach the main thread alone: in any other one nothing is put off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # MLflow's command sends a SIGTERM after the Ctrl-C that both have seen.
        if noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not noted:
            os.write(STANDARD_ERROR, b"Stopping as soon as this step is kept; Ctrl-C once more stops at once.\n")
        noted.append(number)

    before = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        handler = before[noted[0]]
        if callable(handler):
            handler(noted[0], None)
        raise KeyboardInterrupt


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    # MLflow's command sends a SIGTERM after the Ctrl-C that both have seen; it must not break off what ends the run.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
