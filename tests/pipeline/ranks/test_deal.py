import numpy as np
import pytest
import torch

from pipeline.ranks.deal import ALONE, Deal


def deals(processes: int, parts: int = 1) -> list[Deal]:
    return [Deal(number, processes, parts) for number in range(processes)]


@pytest.mark.parametrize(
    ("count", "processes", "parts"), [(8, 2, 1), (7, 2, 1), (1, 3, 1), (9, 2, 4), (10, 3, 2), (3, 2, 8)]
)
def test_each_picture_of_a_batch_is_dealt_to_one_process_and_all_get_nearly_as_many(count, processes, parts):
    shares = [deal.share(count) for deal in deals(processes, parts)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(count))
    for sizes in Deal(0, processes, parts).sizes(count):
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [5, 9, 12])
def test_parts_are_those_that_one_process_takes_one_after_the_other(count):
    """As `tensor_split` in train_step; each process has its pictures part by part."""
    parts = torch.arange(count).tensor_split(min(3, count // 2))
    sizes = Deal(0, 2, 3).sizes(count)
    assert [sum(one) for one in sizes] == [len(part) for part in parts]
    first = 0
    for part, (own, other) in zip(parts, sizes, strict=True):
        assert Deal(0, 2, 3).share(count)[first:][:own].tolist() == part[:own].tolist()
        assert own + other == len(part)
        first += own


def test_one_process_gets_all_in_order():
    assert not ALONE.is_shared
    assert ALONE.share(5).tolist() == [0, 1, 2, 3, 4]
    assert ALONE.stretch(7, 4) == slice(0, 7)


@pytest.mark.parametrize(("count", "multiple"), [(10, 1), (10, 4), (3, 4), (17, 5), (0, 1)])
def test_stretches_are_all_rows_in_order_and_begin_with_a_batch(count, multiple):
    stretches = Deal(0, 3).stretches(count, multiple)
    rows = [row for stretch in stretches for row in range(count)[stretch]]
    assert rows == list(range(count))
    assert all(stretch.start % multiple == 0 or stretch.start == count for stretch in stretches)
    assert [deal.stretch(count, multiple) for deal in deals(3)] == stretches
