"""What processes that work together send one another; all of them call the same function at the same time.

What lies on a GPU goes by NCCL, all else by gloo.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.ranks.deal import Deal

# The most that is sent in one piece.
PIECE_BYTES = 64 * 2**20
# Pieces that a helper has computed and the leader has not taken yet.
WAITING_PIECES = 2


class _Gathered(torch.autograd.Function):
    """The rows of all processes, in their order; the gradient of its own goes back to each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], number: int) -> Tensor:
        """`rows` of this process, of which there may be more than its size."""
        ctx.given, ctx.size, ctx.first = len(rows), sizes[number], sum(sizes[:number])
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: sizes[number]] = rows[: sizes[number]]
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """No exchange: each process has the gradient of all rows."""
        own = gradients[0].new_zeros(ctx.given, *gradients[0].shape[1:])
        own[: ctx.size] = gradients[0][ctx.first :][: ctx.size]
        return own, None, None


def gather_rows(rows: Tensor, sizes: Sequence[int], number: int) -> Tensor:
    """All rows in the order of the processes, each of which gives the first `sizes[number]` of its own; differentiable
    if each then computes the same from all of them."""
    gathered: Tensor = _Gathered.apply(rows, sizes, number)
    return gathered


def sum_gradients(gradients: Sequence[Tensor]) -> None:
    """Replace each by the sum over all processes, in one exchange."""
    with torch.no_grad():
        flat = torch.cat([one.reshape(-1) for one in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [one.numel() for one in gradients])
        summed = [part.view(one.shape) for part, one in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(list(gradients), summed)


def of_leader(value: float) -> float:
    """The leader's number."""
    held = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(held, 0)
    return float(held)


def send_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Send named tensors to all helpers."""
    facts = [(name, tuple(one.shape), one.dtype) for name, one in tensors.items()]
    dist.broadcast_object_list([facts], src=0)
    for one in tensors.values():
        dist.broadcast(one.detach().cpu().contiguous(), 0)


def receive_tensors() -> dict[str, Tensor]:
    """What the leader sends."""
    received: list[Any] = [None]
    dist.broadcast_object_list(received, src=0)
    tensors = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in received[0]}
    for one in tensors.values():
        dist.broadcast(one, 0)
    return tensors


def ask_all(answer: Any) -> list[Any]:
    """The answers of all processes, by number."""
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, answer)
    return answers


def gather(answer: Any) -> list[Any]:
    """In the leader the answers of all processes, by number; nothing in the helpers."""
    answers: list[Any] | None = None if dist.get_rank() else [None] * dist.get_world_size()
    dist.gather_object(answer, answers, dst=0)
    return answers or []


class Sender:
    """Sends arrays from a helper to the leader one after the other, while the next one is being computed."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Tensor]] = deque()

    def send(self, array: npt.NDArray[Any]) -> None:
        """Send an array, of which the leader knows shape and type; waits where it has fallen behind."""
        for piece in _pieces(np.ascontiguousarray(array)):
            self._waiting.append((dist.isend(piece, 0), piece))
            if len(self._waiting) > WAITING_PIECES:
                self._waiting.popleft()[0].wait()

    def finish(self) -> None:
        """Wait until all has been taken."""
        while self._waiting:
            self._waiting.popleft()[0].wait()


def receive_array(shape: Sequence[int], dtype: npt.DTypeLike, number: int) -> npt.NDArray[Any]:
    """The next array that helper `number` sends with a Sender."""
    array = np.empty(tuple(shape), dtype=dtype)
    for piece in _pieces(array):
        dist.recv(piece, number)
    return array


def collect(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """In the leader the arrays of all processes, by number, which may differ in shape; nothing in the helpers."""
    shapes, number = ask_all(array.shape), dist.get_rank()
    if number:
        sender = Sender()
        sender.send(array)
        sender.finish()
        return []
    others = enumerate(shapes[1:], 1)
    return [array, *(receive_array(shape, array.dtype, other) for other, shape in others)]


def in_turn(
    own: Iterator[npt.NDArray[Any]],
    shapes: Callable[[int, int], Sequence[int] | None],
    deal: Deal,
    dtype: npt.DTypeLike,
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """In the leader: (number of the process, array) of all, the first of each, then the second of each, and so on.

    `own` are those of the leader; `shapes` gives, for the number of a process and of an array, its shape, or None where
    that process has no more.
    """
    turn = 0
    while True:
        numbers = [number for number in range(deal.processes) if shapes(number, turn) is not None]
        if not numbers:
            return
        for number in numbers:
            shape = shapes(number, turn)
            assert shape is not None
            yield number, next(own) if number == 0 else receive_array(shape, dtype, number)
        turn += 1


def _pieces(array: npt.NDArray[Any]) -> list[Tensor]:
    """An array's bytes, in pieces that are sent one by one; they share its memory."""
    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    return list(torch.split(flat, PIECE_BYTES)) if len(flat) else []
