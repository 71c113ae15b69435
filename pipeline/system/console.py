"""Writes to the console: sentences, tables, and progress with rate and time left.

On a terminal progress is a bar; elsewhere (a log file, a pipe) it is a line every ten seconds.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def say(sentence: str) -> None:
    """Write one line to standard output, unbuffered."""
    print(sentence, flush=True)


def warn(sentence: str) -> None:
    """Write one line to standard error, unbuffered."""
    print(sentence, file=sys.stderr, flush=True)


def track(items: Iterable[Item], description: str, total: int, unit: str, per_item: int = 1) -> Iterator[Item]:
    """Yield `items` and show progress: `total` units in all, `per_item` of them for each item."""
    if total <= 0:
        yield from items
    elif sys.stdout.isatty():
        yield from _with_bar(items, description, total, unit, per_item)
    else:
        yield from _with_lines(items, description, total, unit, per_item)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output; columns after the first are right-aligned."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(drawn)


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
