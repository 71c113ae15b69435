"""Work on many files by several threads at once, with a bounded number of results waiting."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WAITING = 512


def in_parallel(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`work` done on every item, in their order, by as many threads as there are cores."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        for start in range(0, len(items), MOST_WAITING):
            yield from pool.map(work, items[start : start + MOST_WAITING])
