import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches, fetch_activations, fetch_pixels, prefetch, seed_for
from pipeline.system.arrays import Rows

CPU = torch.device("cpu")
CHUNKS = [np.arange(start, start + 3) for start in range(0, 30, 3)]
TARGETS = np.arange(100, dtype=np.int64)
FLIPS = Augmentation(flip="sideways", rotate_degrees=0, zoom=1, crop=1, lighting=0, probability=1)
MIXED = replace(FLIPS, mixup=0.4, cutmix=1.0)


def slowest_first(rows: Rows) -> Tensor:
    time.sleep((30 - int(rows[0])) / 3000)
    return torch.from_numpy(rows)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_chunks_come_in_their_order_with_any_number_of_workers(workers: int) -> None:
    fetched = list(prefetch(slowest_first, CHUNKS, CPU, workers))
    assert [chunk.tolist() for chunk in fetched] == [chunk.tolist() for chunk in CHUNKS]


def test_the_next_chunks_are_fetched_while_one_is_in_use() -> None:
    begun: list[int] = []
    third = threading.Event()

    def fetch(rows: Rows) -> Tensor:
        begun.append(int(rows[0]))
        if len(begun) == 3:
            third.set()
        return torch.from_numpy(rows)

    fetched = prefetch(fetch, CHUNKS, CPU, 2)
    next(fetched)
    assert third.wait(600)
    assert len(begun) <= 4  # and no further ahead than that
    fetched.close()


def test_without_workers_nothing_is_fetched_before_it_is_asked_for() -> None:
    begun: list[int] = []

    def fetch(rows: Rows) -> Tensor:
        begun.append(int(rows[0]))
        return torch.from_numpy(rows)

    next(prefetch(fetch, CHUNKS, CPU, 0))
    assert begun == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_thread_is_raised_when_its_chunk_is_taken(workers: int) -> None:
    def fetch(rows: Rows) -> Tensor:
        if rows[0] == 9:
            raise RuntimeError("no such row")
        return torch.from_numpy(rows)

    fetched = prefetch(fetch, CHUNKS, CPU, workers)
    assert [int(next(fetched)[0]) for _ in range(3)] == [0, 3, 6]
    with pytest.raises(RuntimeError, match="no such row"):
        next(fetched)


def test_a_prefetch_that_is_closed_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    fetched = prefetch(slowest_first, CHUNKS, CPU, 3)
    next(fetched)
    fetched.close()
    assert threading.active_count() == before


def row_numbers(rows: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(rows).float().view(-1, 1)


def batches(count: int, batch_size: int, seed: int | None = 0, augmentation: Augmentation | None = None) -> Batches:
    rows = np.arange(count, dtype=np.int64)
    return Batches(row_numbers, rows, TARGETS, batch_size, CPU, seed, augmentation)


def order(of: Batches, epoch: int) -> list[int]:
    return [int(target) for _, targets in of.epoch(epoch) for target in targets]


def pictures(count: int, channels: int = 3, size: int = 8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def images_of(of: Batches, epoch: int) -> Tensor:
    return torch.cat([images for images, _ in of.epoch(epoch)])


def test_the_order_is_a_function_of_seed_and_epoch_alone() -> None:
    first = [order(batches(40, 8), epoch) for epoch in range(3)]
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = batches(40, 8)
    assert [order(again, epoch) for epoch in (2, 0, 1)] == [first[2], first[0], first[1]]


def test_each_epoch_has_another_order() -> None:
    assert len({tuple(order(batches(40, 8), epoch)) for epoch in range(10)}) == 10


def test_each_seed_has_another_order() -> None:
    assert len({tuple(order(batches(40, 8, seed), 0)) for seed in range(10)}) == 10


def test_shuffled_batches_have_every_row_once_when_they_come_out_even() -> None:
    assert sorted(order(batches(40, 8), 0)) == list(range(40))
    assert order(batches(40, 8), 0) != list(range(40))


def test_shuffled_batches_drop_the_remainder_and_repeat_nothing() -> None:
    sizes = [len(targets) for _, targets in batches(43, 8).epoch(0)]
    seen = order(batches(43, 8), 0)
    assert sizes == [8] * 5
    assert len(set(seen)) == len(seen) == 40


def test_the_remainder_that_is_dropped_differs_from_epoch_to_epoch() -> None:
    seen = {row for epoch in range(8) for row in order(batches(43, 8), epoch)}
    assert seen == set(range(43))


def test_without_a_seed_every_row_comes_in_order_the_last_batch_too() -> None:
    plain = batches(43, 8, seed=None)
    assert [len(targets) for _, targets in plain.epoch(0)] == [8] * 5 + [3]
    assert order(plain, 0) == order(plain, 1) == list(range(43))


@pytest.mark.parametrize("seed", [None, 0])
def test_fewer_rows_than_one_batch_come_as_one_batch(seed: int | None) -> None:
    few = batches(5, 8, seed)
    assert len(few) == 1
    assert sorted(order(few, 0)) == list(range(5))


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 43])
def test_the_length_is_the_number_of_batches(seed: int | None, count: int) -> None:
    some = batches(count, 8, seed)
    assert len(list(some.epoch(3))) == len(some)


def test_inputs_and_targets_belong_to_the_same_rows() -> None:
    rows = np.array([5, 9, 70, 31, 2, 88], dtype=np.int64)
    targets = TARGETS * 3
    for inputs, found in Batches(row_numbers, rows, targets, 4, CPU, seed=1).epoch(0):
        assert (inputs.flatten().long() * 3).tolist() == found.tolist()


def test_only_the_rows_given_are_used() -> None:
    rows = np.array([5, 9, 70, 31], dtype=np.int64)
    assert sorted(order(Batches(row_numbers, rows, TARGETS, 2, CPU, seed=1), 0)) == [5, 9, 31, 70]
    assert order(Batches(row_numbers, rows, TARGETS, 2, CPU), 0) == [5, 9, 70, 31]


def test_targets_are_class_numbers() -> None:
    _, targets = next(batches(8, 8).epoch(0))
    assert targets.dtype == torch.int64


def test_augmentation_is_a_function_of_seed_and_epoch_alone() -> None:
    fetch = fetch_pixels(pictures(12), CPU)
    strong = Augmentation(flip="all", rotate_degrees=20, zoom=1.2, crop=0.7, lighting=0.3, probability=0.8)
    train = Batches(fetch, np.arange(12, dtype=np.int64), TARGETS, 4, CPU, seed=3, augmentation=strong)
    first = images_of(train, 1)
    torch.manual_seed(123)
    assert torch.equal(images_of(train, 1), first)
    assert torch.equal(images_of(replace(train), 1), first)
    in_row_order = [first[np.argsort(order(train, 1))], images_of(train, 2)[np.argsort(order(train, 2))]]
    assert not torch.allclose(*in_row_order, atol=1e-2)


def test_a_row_is_augmented_in_another_way_in_each_epoch() -> None:
    fetch = fetch_pixels(pictures(1), CPU)
    one = Batches(fetch, np.zeros(1, dtype=np.int64), TARGETS, 1, CPU, seed=0, augmentation=FLIPS)
    plain = fetch(np.zeros(1, dtype=np.int64))
    flipped = [not torch.allclose(images_of(one, epoch), plain, atol=1e-4) for epoch in range(20)]
    assert 3 < sum(flipped) < 17


def test_every_batch_of_an_epoch_is_augmented_in_its_own_way() -> None:
    fetch = fetch_pixels(np.repeat(pictures(1), 40, axis=0), CPU)
    one_by_one = Batches(fetch, np.arange(40, dtype=np.int64), TARGETS, 1, CPU, seed=0, augmentation=FLIPS)
    plain = fetch(np.zeros(1, dtype=np.int64))
    flipped = [not torch.allclose(images, plain, atol=1e-4) for images, _ in one_by_one.epoch(0)]
    assert 8 < sum(flipped) < 32


def test_mixing_is_a_function_of_seed_and_epoch_alone_and_can_be_resumed_at_any_batch() -> None:
    fetch = fetch_pixels(pictures(20), CPU)
    train = Batches(fetch, np.arange(20), TARGETS[:20] % 4, 4, CPU, seed=3, augmentation=MIXED)
    whole = list(train.epoch(1))
    torch.manual_seed(5)
    for first in range(5):
        for (images, shares), (same_images, same_shares) in zip(train.epoch(1, first), whole[first:], strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(shares, same_shares)
    other = next(train.epoch(2))[1]
    assert not torch.equal(other, whole[0][1])


def test_mixed_targets_are_shares_of_all_classes_and_plain_ones_class_numbers() -> None:
    fetch, targets = fetch_pixels(pictures(20), CPU), TARGETS[:20] % 4
    _, shares = next(Batches(fetch, np.arange(20), targets, 5, CPU, 0, MIXED).epoch(0))
    assert shares.shape == (5, 4)
    _, plain = next(Batches(fetch, np.arange(20), targets, 5, CPU, 0, FLIPS).epoch(0))
    assert plain.dtype == torch.int64


def test_weights_belong_to_the_same_rows_as_targets_and_without_weights_there_are_none() -> None:
    weighted = replace(batches(43, 8), weights=np.arange(100, dtype=np.float32) * 3)
    for epoch, first in ((0, 0), (1, 0), (1, 3)):
        seen = list(weighted.weighted_epoch(epoch, first))
        assert len(seen) == len(weighted) - first
        for inputs, targets, weights in seen:
            assert weights is not None
            assert weights.dtype == torch.float32
            assert weights.tolist() == (targets * 3).tolist() == (inputs.flatten() * 3).tolist()
    assert all(weights is None for *_, weights in batches(43, 8).weighted_epoch(0))


def test_weights_change_neither_order_nor_augmentation() -> None:
    fetch = fetch_pixels(pictures(20), CPU)
    plain = Batches(fetch, np.arange(20), TARGETS[:20] % 4, 4, CPU, 3, MIXED)
    weighted = replace(plain, weights=np.linspace(1, 2, 20, dtype=np.float32))
    for (images, shares), (same_images, same_shares) in zip(plain.epoch(1), weighted.epoch(1), strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(shares, same_shares)


@pytest.mark.parametrize(
    "augmentation", [replace(FLIPS, mixup=0.4), replace(FLIPS, cutmix=1.0)], ids=["mixup", "cutmix"]
)
def test_a_mixed_picture_weighs_as_its_two_pictures_do_by_their_shares_in_it(augmentation: Augmentation) -> None:
    fetch = fetch_pixels(pictures(20), CPU)
    by_class = np.array([1, 4, 9, 16], dtype=np.float32)
    targets = np.arange(20) % 4
    train = Batches(fetch, np.arange(20), targets, 5, CPU, 0, augmentation, weights=by_class[targets])
    mixed = 0
    for _, shares, weights in train.weighted_epoch(0):
        assert weights is not None
        torch.testing.assert_close(weights, shares @ torch.from_numpy(by_class))
        mixed += int((shares.max(1).values < 0.999).sum())
    assert mixed > 3


def test_images_are_bit_for_bit_the_same_with_any_number_of_workers_and_from_any_batch_on() -> None:
    fetch = fetch_pixels(pictures(20), CPU)
    alone = Batches(fetch, np.arange(20), TARGETS, 4, CPU, seed=3, augmentation=MIXED)
    whole = images_of(alone, 2)
    for workers in (1, 3):
        ahead = replace(alone, workers=workers)
        assert torch.equal(images_of(ahead, 2), whole)
        assert torch.equal(torch.cat([images for images, _ in ahead.epoch(2, 3)]), whole[12:])


def test_validation_batches_hold_the_pictures_as_they_are() -> None:
    pixels = pictures(10)
    valid = Batches(fetch_pixels(pixels, CPU), np.arange(10, dtype=np.int64), TARGETS, 4, CPU)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(images_of(valid, 0), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_become_images_from_0_to_1_channels_first(channels: int) -> None:
    pixels = pictures(4, channels)
    pixels[0, 0, 0, 0], pixels[1, 2, 3, 0] = 0, 255
    images = fetch_pixels(pixels, CPU)(np.array([1, 0]))
    assert images.shape == (2, channels, 8, 8)
    assert images.dtype == torch.float32
    assert images[0, 0, 2, 3] == 1
    assert images[1, 0, 0, 0] == 0
    assert torch.equal((images * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(pixels[[1, 0]]))


def test_images_lie_channels_last_in_memory() -> None:
    images = fetch_pixels(pictures(4), CPU)(np.arange(4))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()


def test_a_read_only_memory_map_is_left_as_it_is(tmp_path: Path) -> None:
    pixels = pictures(4)
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    fetch_pixels(mapped, CPU)(np.arange(4)).zero_()
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_activations_come_as_float32(dtype: npt.DTypeLike) -> None:
    stored = np.random.default_rng(0).standard_normal((6, 5)).astype(dtype)
    rows = np.array([4, 0, 2])
    fetched = fetch_activations(stored, CPU)(rows)
    assert fetched.dtype == torch.float32
    assert np.array_equal(fetched.numpy(), stored[rows].astype(np.float32))


def test_the_same_seed_and_epoch_give_the_same_seed_on_every_machine() -> None:
    assert seed_for(0, 0) == int(np.random.SeedSequence([0, 0]).generate_state(1, np.uint64)[0]) // 2


def test_no_near_pair_of_seed_and_epoch_shares_its_seed() -> None:
    seeds = {seed_for(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_epoch_that_is_balanced_has_as_many_rows_of_each_class_and_uses_each_row_alike():
    targets = np.array([0] * 9 + [1] * 2 + [2] * 1)
    batches = Batches(lambda rows: torch.from_numpy(rows), np.arange(12), targets, 4, CPU, seed=0, is_balanced=True)
    epochs = [np.concatenate([rows for rows, _ in batches.epoch(epoch)]) for epoch in range(4)]
    for rows in epochs:
        assert np.bincount(targets[rows]).tolist() == [4, 4, 4]
        assert np.bincount(rows, minlength=12)[9:].tolist() == [2, 2, 4]
    assert set(np.concatenate(epochs)) == set(range(12))
    assert not np.array_equal(*epochs[:2])
    assert np.array_equal(np.concatenate([rows for rows, _ in batches.epoch(1)]), epochs[1])


def soft_batches(augmentation: Augmentation | None = None, **more: object) -> Batches:
    shares = np.stack([TARGETS / 100, 1 - TARGETS / 100], 1).astype(np.float32)
    targets = (TARGETS < 50).astype(np.int64)

    def fetch(rows: Rows) -> Tensor:
        return torch.from_numpy(rows).float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 100

    return Batches(fetch, np.arange(100), targets, 10, CPU, 3, augmentation, shares=shares, **more)


def test_where_labels_are_soft_the_targets_are_each_classs_share() -> None:
    for images, targets in soft_batches().epoch(0):
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets[:, 0], images[:, 0, 0, 0])


def test_soft_labels_are_mixed_as_the_pictures_are() -> None:
    for images, targets in soft_batches(replace(FLIPS, mixup=0.4)).epoch(0):
        torch.testing.assert_close(targets[:, 0], images[:, 0, 0, 0])
        torch.testing.assert_close(targets.sum(1), torch.ones(10))


def test_classes_of_soft_labels_are_balanced_by_the_likeliest() -> None:
    batches = replace(soft_batches(is_balanced=True), rows=np.arange(40, 100))
    likeliest = torch.cat([targets for _, targets in batches.epoch(0)]).argmax(1)
    assert torch.bincount(likeliest).tolist() == [30, 30]
