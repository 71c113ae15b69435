"""Pictures decoded by all processes, block by block, for a store that the leader writes."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from pipeline.data.decode import Pixels
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.ranks.exchange import Sender, ask_all, of_leader, receive_array
from pipeline.ranks.team import deal, processes, together
from pipeline.system.parallel import in_parallel

LARGEST_BLOCK_ROWS = 256
# Blocks of all processes that the leader holds at a time.
ROUND_BYTES = 256 * 2**20
# Blocks that each process decodes ahead, and by how many threads.
AHEAD, DECODERS = 3, 2


def decoded_blocks(source: DecodedPixels, first: int) -> tuple[Iterator[Pixels], int]:
    """`blocks` of the source; where helpers have the pictures too, they decode their part."""
    size = max(min(ROUND_BYTES // (prod(source.shape[1:]) * processes()), LARGEST_BLOCK_ROWS), 1)
    if processes() == 1 or len(source) - first <= size:
        return source.blocks(first)
    return _together(source, first, size), size


def decode_share(made_from: tuple[Any, ...], first: int, size: int) -> None:
    """A helper's part: the blocks that are its turn, sent to the leader for as long as it takes them."""
    source, sender = DecodedPixels(*made_from), Sender()
    turns = ask_all(made_from[0].root.exists())
    number, count = deal().number, sum(turns)
    own = _own_blocks(source, first, size, (sum(turns[:number]), count)) if turns[number] else iter(())
    for _ in range(first, len(source), size * count):
        if not of_leader(0):
            break
        if (block := next(own, None)) is not None:
            sender.send(block)
    sender.finish()


def _together(source: DecodedPixels, first: int, size: int) -> Iterator[Pixels]:
    """The blocks in their order. A round of them, one of each process that has the pictures, is asked for at a time, so
    that helpers stop where the leader does."""
    with together(decode_share, source.made_from, first, size):
        numbers = [number for number, has_pictures in enumerate(ask_all(True)) if has_pictures]
        own = _own_blocks(source, first, size, (0, len(numbers)))
        try:
            for start in range(first, len(source), size * len(numbers)):
                of_leader(1)
                lengths = [min(max(len(source) - start - size * turn, 0), size) for turn in range(len(numbers))]
                yield from [
                    receive_array((length, *source.shape[1:]), np.uint8, number) if number else next(own)
                    for number, length in zip(numbers, lengths, strict=True)
                    if length
                ]
        except GeneratorExit:
            of_leader(0)
            raise


def _own_blocks(source: DecodedPixels, first: int, size: int, turn: tuple[int, int]) -> Iterator[Pixels]:
    """The blocks of one of several processes, decoded ahead."""
    number, count = turn
    starts = range(first + size * number, len(source), size * count)
    return in_parallel(lambda start: source[start : start + size], starts, AHEAD, DECODERS)
