"""Batches fetched ahead by threads, so that what trains on them does not wait."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.parallel import in_parallel
from pipeline.splits import Rows


def fetch_ahead(
    fetch: Callable[[Rows], Tensor], parts: Sequence[Rows], device: torch.device, workers: int
) -> Iterator[Tensor]:
    """What `fetch` gives for each of `parts`, in their order: the same, however many `workers` there are.

    With workers, so many threads are at work on the parts that come next. On a GPU what they send there goes over a
    stream of its own, so that it passes while the GPU computes. With none, each part is fetched when it is asked for.
    """
    if workers == 0:
        yield from map(fetch, parts)
    elif device.type == "cuda":
        yield from _over_a_stream(fetch, parts, device, workers)
    else:
        yield from in_parallel(fetch, parts, workers + 1, workers)


def _over_a_stream(
    fetch: Callable[[Rows], Tensor], parts: Sequence[Rows], device: torch.device, workers: int
) -> Iterator[Tensor]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def on_the_side(rows: Rows) -> tuple[Tensor, Any]:
        with torch.cuda.stream(side):
            return fetch(rows), side.record_event()

    for fetched, there in in_parallel(on_the_side, parts, workers + 1, workers):
        current = torch.cuda.current_stream(device)
        current.wait_event(there)
        fetched.record_stream(current)  # its memory must not be taken for the next batch while this one is in use
        yield fetched
