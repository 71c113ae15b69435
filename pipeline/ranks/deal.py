"""Who of several processes gets what: of a batch that all train on, and of rows that are read once.

The served model imports this file, which therefore imports nothing of its wing.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Deal:
    """What process `number` of `processes` gets. A batch goes through the network in `parts`, one after the other, of
    each of which every process gets a share."""

    number: int = 0
    processes: int = 1
    parts: int = 1

    @property
    def is_shared(self) -> bool:
        """Whether there are several processes."""
        return self.processes > 1

    def sizes(self, count: int) -> list[list[int]]:
        """How many of a batch of `count` each process gets, for each part of the batch: the same number, or one more.

        A part has at least two pictures, as in `train_step`.
        """
        return [_evenly(part, self.processes) for part in _evenly(count, max(1, min(self.parts, count // 2)))]

    def share(self, count: int) -> Positions:
        """The positions in a batch of `count` that this process gets, part by part; none if the batch is smaller than
        the number of processes and others have got all."""
        positions, start = [], 0
        for sizes in self.sizes(count):
            first = start + sum(sizes[: self.number])
            positions.append(np.arange(first, first + sizes[self.number], dtype=np.int64))
            start += sum(sizes)
        return np.concatenate(positions)

    def stretch(self, count: int, multiple: int = 1) -> slice:
        """Which of `count` rows in order this process gets; it begins at a multiple of `multiple`."""
        return self.stretches(count, multiple)[self.number]

    def stretches(self, count: int, multiple: int = 1) -> list[slice]:
        """The same for each process."""
        ends = np.cumsum([0, *_evenly(-(-count // multiple), self.processes)]) * multiple
        return [slice(min(int(a), count), min(int(b), count)) for a, b in pairwise(ends)]


ALONE = Deal()


def _evenly(count: int, parts: int) -> list[int]:
    """`count` in `parts` whole numbers, of which the first may be larger by one."""
    return [count // parts + (number < count % parts) for number in range(parts)]
