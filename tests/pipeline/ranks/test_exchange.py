"""What processes send one another, each of them checked in the leader against what it has to be."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.ranks.exchange import (
    Sender,
    ask_all,
    collect,
    gather_rows,
    in_turn,
    of_leader,
    receive_tensors,
    send_tensors,
    sum_gradients,
)
from pipeline.ranks.team import deal, together
from tests.several_processes import run_led

PROCESSES = 3
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "none": torch.empty(0, 4, dtype=torch.float16)}
LONG = np.arange(100_000, dtype=np.float32).reshape(-1, 10)


def array_of(number: int) -> np.ndarray:
    return np.full((number + 1, 2), number, dtype=np.float16)


def exchange_all() -> list[object]:
    """All kinds of exchanges in a fixed order; gives what this process has in the end."""
    number = deal().number
    answers = ask_all(f"of {number}")
    value = of_leader(float(number) + 0.1)
    gradients = [torch.full((2, 2), float(number)), torch.tensor([1.0])]
    sum_gradients(gradients)
    collected = collect(array_of(number))
    return [answers, value, *gradients, collected]


def help_exchange(folder: Path) -> None:
    *found, collected = exchange_all()
    assert collected == []
    received = receive_tensors()
    torch.save([*found, received], folder / f"{deal().number}.pt")


def lead_exchange(folder: Path) -> None:
    with together(help_exchange, folder):
        *found, collected = exchange_all()
        send_tensors(TENSORS)
    assert all((one == array_of(number)).all() for number, one in enumerate(collected))
    assert [one.shape for one in collected] == [(1, 2), (2, 2), (3, 2)]
    torch.save([*found, TENSORS], folder / "0.pt")


def test_every_process_ends_with_the_same(tmp_path):
    run_led(lead_exchange, tmp_path, processes=PROCESSES, cache=tmp_path / "cache")
    for number in range(PROCESSES):
        answers, value, first, second, tensors = torch.load(tmp_path / f"{number}.pt")
        assert answers == ["of 0", "of 1", "of 2"]
        assert value == 0.1
        assert first.tolist() == [[3.0, 3.0], [3.0, 3.0]]
        assert second.tolist() == [3.0]
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
        assert tensors["none"].dtype == torch.float16


SIZES = [2, 0, 3]


def of_shares() -> tuple[torch.Tensor, torch.Tensor]:
    """The gathered rows, and the gradient of a loss of all of them by this process's own weight."""
    number = deal().number
    torch.manual_seed(0)
    rows, layer = torch.randn(5, 4), nn.Linear(4, 2, bias=False)
    own = rows[sum(SIZES[:number]) :][: SIZES[number]] if SIZES[number] else rows[:1]  # one that does not count
    gathered = gather_rows(layer(own), SIZES, number)
    (gathered.square() * torch.arange(5.0).view(-1, 1)).sum().backward()
    gradient = layer.weight.grad
    sum_gradients([gradient])
    return gathered.detach(), gradient


def help_gather() -> None:
    of_shares()


def lead_gather(folder: Path) -> None:
    with together(help_gather):
        torch.save(of_shares(), folder / "found.pt")


def test_rows_are_gathered_in_order_and_their_gradients_add_up_to_those_of_one_process(tmp_path):
    run_led(lead_gather, tmp_path, processes=PROCESSES, cache=tmp_path / "cache")
    gathered, gradient = torch.load(tmp_path / "found.pt")
    torch.manual_seed(0)
    rows, layer = torch.randn(5, 4), nn.Linear(4, 2, bias=False)
    expected = layer(rows)
    (expected.square() * torch.arange(5.0).view(-1, 1)).sum().backward()
    torch.testing.assert_close(gathered, expected.detach())
    torch.testing.assert_close(gradient, layer.weight.grad)


def parts_of(number: int) -> Iterator[np.ndarray]:
    """As many arrays as the number of the process, and one more, of growing length."""
    for turn in range(number + 1):
        yield LONG[number * 100 : number * 100 + turn + 1] if number < 2 else LONG[: 3000 * (turn + 1)]


def help_in_turn() -> None:
    sender = Sender()
    for part in parts_of(deal().number):
        sender.send(part)
    sender.finish()


def lead_in_turn(folder: Path) -> None:
    def shape(number: int, turn: int) -> tuple[int, ...] | None:
        parts = list(parts_of(number))
        return parts[turn].shape if turn < len(parts) else None

    with together(help_in_turn):
        found = list(in_turn(parts_of(0), shape, deal(), LONG.dtype))
    assert [number for number, _ in found] == [0, 1, 2, 1, 2, 2]
    turns = dict.fromkeys(range(PROCESSES), 0)
    for number, array in found:
        assert (array == list(parts_of(number))[turns[number]]).all()
        turns[number] += 1
    (folder / "done").touch()


def test_arrays_come_in_turn_from_each_process_that_has_more(tmp_path, monkeypatch):
    run_led(lead_in_turn, tmp_path, processes=PROCESSES, cache=tmp_path / "cache")
    assert (tmp_path / "done").exists()
