"""A function of many things, of which every process computes its share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import torch.distributed as dist

from pipeline.ranks.exchange import gather
from pipeline.ranks.team import deal, processes, together

Item = TypeVar("Item")
Result = TypeVar("Result")
OfMany: TypeAlias = Callable[[Sequence[Item]], list[Result]]


@contextmanager
def shared(function: OfMany[Item, Result]) -> Iterator[OfMany[Item, Result]]:
    """Within the block, the same function of a list of items, which gives a result for each: helpers compute it for
    their share of the list, if there are any. It must be found by its name, and items and results be picklable."""
    if processes() == 1:
        yield function
        return
    with together(compute_shares, function):
        try:
            yield lambda items: [result for share in _computed(function, _sent(items)) for result in share]
        except GeneratorExit:
            _sent(None)
            raise
        _sent(None)


def compute_shares(function: OfMany[Any, Any]) -> None:
    """A helper's part: its share of all that the leader sends, until that sends nothing more."""
    while (items := _sent(None)) is not None:
        _computed(function, items)


def _sent(items: Sequence[Any] | None) -> Any:
    """The leader's items; all processes call it."""
    held = [items]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def _computed(function: OfMany[Item, Result], items: Sequence[Item]) -> list[list[Result]]:
    """In the leader what each process has computed; nothing in the helpers."""
    return gather(function(items[deal().stretch(len(items))]))
