"""Runs a function on many items in several threads, with a bounded number of results waiting."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.system.machine import own_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_WAITING = 512


def in_parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    most_waiting: int | None = None,
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield the result of `work` for every item, in their order, computed by `workers` threads (default: `own_cores`).

    At most `most_waiting` results (default: MOST_WAITING) are being computed or wait to be taken.
    """
    pool = ThreadPoolExecutor(workers or own_cores())
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == (most_waiting or MOST_WAITING):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
