"""Writes to the console: sentences, tables, and progress with rate and time left.

On a terminal progress is a bar; elsewhere (a log file, a pipe) it is a line every ten seconds. What the terminal cannot
encode is escaped. Where nobody reads on, as behind `| head -1`, the program ends as by Ctrl-C, silently.
"""

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
# The exit code of a program that writes to a closed pipe, as shells give it.
OUTPUT_CLOSED_STATUS = 141


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller; rich would end the program."""
        raise


class _Held:
    """What is said within `held`; None outside of it."""

    sentences: list[str] | None = None


_HELD = _Held()


class OutputClosed(KeyboardInterrupt):
    """Nobody reads the output on."""


@contextmanager
def guarded_output() -> Iterator[None]:
    """For the whole of a command: what libraries print is escaped too, and a closed pipe is no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        if not _discard_closed():
            raise
        sys.exit(OUTPUT_CLOSED_STATUS)
    finally:
        _discard_closed()


def say(sentence: str) -> None:
    """Write one line to standard output, unbuffered; within `held`, later."""
    if _HELD.sentences is not None:
        _HELD.sentences.append(sentence)
    else:
        _write(f"{sentence}\n", sys.stdout)


@contextmanager
def held() -> Iterator[Callable[..., None]]:
    """Hold back what is said within the block, until its end or until the function that it gives is called first, whose
    sentence comes before."""
    _HELD.sentences = []

    def release(*first: str) -> None:
        sentences, _HELD.sentences = _HELD.sentences, None
        for sentence in (*first, *sentences) if sentences is not None else ():
            say(sentence)

    try:
        yield release
    finally:
        release()


def warn(sentence: str) -> None:
    """Write one line to standard error, unbuffered."""
    _write(f"{sentence}\n", sys.stderr)


def track(items: Iterable[Item], description: str, total: int, unit: str, per_item: int = 1) -> Iterator[Item]:
    """Yield `items` and show progress: `total` units in all, `per_item` of them for each item."""
    if total <= 0:
        yield from items
    elif sys.stdout is not None and sys.stdout.isatty():
        yield from _with_bar(items, description, total, unit, per_item)
    else:
        yield from _with_lines(items, description, total, unit, per_item)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; columns after the first are right-aligned."""
    # Escaped before the columns get their widths.
    drawn = Table(title=_escaped(title, sys.stdout), title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(_escaped(column, sys.stdout), justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*(Text(_escaped(cell, sys.stdout)) for cell in row))
    console = _Console()
    if not console.is_terminal:
        console = _Console(width=110)
    with _ending_when_closed(sys.stdout), console.capture() as captured:
        console.print(drawn)
    _write(captured.get(), sys.stdout)


def duration(seconds: float) -> str:
    """Seconds in the form of `0.4 s`, `12 s`, `3 min 05 s`, `or `2 h 01 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def roughly(seconds: float) -> str:
    """Seconds in two digits: `4 s`, `1.5 min`, `12 min`, `2.5 h`."""
    for limit, length, unit in ((59.5, 1.0, "s"), (3570.0, 60.0, "min"), (float("inf"), 3600.0, "h")):
        if seconds < limit:
            amount = seconds / length
            return f"{max(amount, 1.0):.0f} {unit}" if length == 1.0 or amount >= 9.95 else f"{amount:.1f} {unit}"
    raise AssertionError("every number of seconds is below infinity")


def _write(text: str, stream: TextIO | None) -> None:
    """Write and flush; OutputClosed if nobody reads on."""
    if stream is not None:  # as where the program was started without one
        with _ending_when_closed(stream):
            print(_escaped(text, stream), end="", file=stream, flush=True)


@contextmanager
def _ending_when_closed(stream: TextIO) -> Iterator[None]:
    """OutputClosed for a broken pipe; other threads leave it to the main one to end the program."""
    try:
        yield
    except BrokenPipeError:
        if threading.current_thread() is threading.main_thread():
            _discard(stream)
            raise OutputClosed from None


def _escaped(text: str, stream: TextIO | None) -> str:
    """`text` with backslashes and numbers for what `stream` cannot encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _discard_closed() -> bool:
    """Whether a stream is closed at its other end; what is left for it is dropped."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_closed(stream)]
    for stream in closed:
        _discard(stream)
    return bool(closed)


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads what is written to `stream`, which is flushed."""
    try:
        stream.flush()
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # one without a file behind it
        return False


def _discard(stream: TextIO) -> None:
    """Let `stream` go nowhere, so that flushing it at the program's end raises nothing."""
    with suppress(OSError, ValueError):  # one without a file behind it
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _with_bar(items: Iterable[Item], description: str, total: int, unit: str, per_item: int) -> Iterator[Item]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(description, total=total, rate="")
        started, done = time.perf_counter(), 0
        for item in items:
            yield item
            done = min(done + per_item, total)
            rate = done / max(time.perf_counter() - started, 1e-9)
            progress.update(task, completed=done, rate=f"{rate:,.0f} {unit}/s")


def _with_lines(items: Iterable[Item], description: str, total: int, unit: str, per_item: int) -> Iterator[Item]:
    started = last_line = time.perf_counter()
    done = 0
    for item in items:
        yield item
        done = min(done + per_item, total)
        now = time.perf_counter()
        if now - last_line >= SECONDS_BETWEEN_LINES and done < total:
            last_line = now
            rate = done / (now - started)
            left = duration((total - done) / rate)
            say(f"{description}: {done:,} of {total:,} {unit} ({done / total:.0%}), {rate:,.0f} {unit}/s, {left} left")
