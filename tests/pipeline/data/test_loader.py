"""Training and validation batches of a split; rows read ahead, or from a GPU's memory, are the same."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.data.augment import Augmentation
from pipeline.data.decode import Pixels
from pipeline.data.loader import (
    Split,
    class_weights,
    pixel_batches,
    prefetching_fetcher,
    resident,
    training_fetcher,
    training_split,
)
from pipeline.data.manifest import COLUMNS, Manifest, build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import StoredPixels, open_pixels
from pipeline.models.body import build_body
from pipeline.models.network import Network
from pipeline.training.fit import Phase, fit
from pipeline.training.optim import thaw

CPU = torch.device("cpu")
AUGMENTATION = Augmentation("all", 20, 1.2, 0.7, 0.3, 0.75, mixup=0.4)
ALWAYS = Augmentation("all", 20, 1.2, 0.7, 0.3, 1.0)
FRACTIONS = [0.05, 0.1, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    random = np.random.default_rng(0)
    for row in range(24):
        folder = tmp_path / "photos" / f"class {row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{row:02d}.png")
    return build_manifest(list_source(str(tmp_path / "photos"), [".png"]), 0.2, 0.2, 0.0, 0)


def batches_of(pixels: Pixels, manifest: Manifest) -> list[tuple[torch.Tensor, torch.Tensor]]:
    split = Split(manifest.rows("train"), manifest.rows("valid"), manifest.targets)
    train, valid = pixel_batches(pixels, split, AUGMENTATION, 4, CPU, seed=3)
    return [*train.epoch(2), *train.epoch(2, 1), *valid.epoch(0)]


def test_pictures_that_are_decoded_as_they_are_needed_give_the_batches_of_a_store_bit_for_bit(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(open_pixels(manifest, 16, "crop"), manifest)
    decoded = open_pixels(manifest, 16, "crop", max_store_gib=0)
    assert prefetching_fetcher(decoded, CPU)[1] > 0
    for workers in (1, 2, 4):
        monkeypatch.setattr("pipeline.data.loader.WORKERS_THAT_DECODE", workers)
        found = batches_of(decoded, manifest)
        assert len(found) == len(expected)
        for (images, targets), (same_images, same_targets) in zip(found, expected, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(targets, same_targets)


def test_on_a_cpu_a_store_is_read_without_prefetching(manifest: Manifest) -> None:
    pixels = open_pixels(manifest, 16, "crop")
    assert training_fetcher(pixels, np.arange(4), CPU)[1] == 0
    assert resident(pixels, np.arange(4), CPU) is None


def test_rows_read_from_the_file_are_those_read_through_the_map(manifest: Manifest) -> None:
    pixels = open_pixels(manifest, 16, "crop")
    assert isinstance(pixels, StoredPixels)
    rows = np.array([5, 0, 23, 5])
    squares = np.empty((4, *pixels.shape[1:]), dtype=np.uint8)
    pixels.read_into(rows, squares)
    assert np.array_equal(squares, pixels[rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.4, 0.0], ids=["resident", "pinned"])
def test_a_gpu_gets_the_same_images(manifest: Manifest, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.loader.RESIDENT_SHARE", share)
    pixels, rows = open_pixels(manifest, 16, "crop"), np.array([7, 2, 11])
    fetch, workers = training_fetcher(pixels, np.array([2, 7, 9, 11]), torch.device("cuda"))
    assert workers == (0 if share else 1)
    assert torch.allclose(
        fetch(rows).cpu(), prefetching_fetcher(pixels, CPU)[0](rows), atol=1e-6
    )  # a GPU divides otherwise


def pets(count: int = 200) -> Manifest:
    """Every fourth picture is a dog; of ten pictures two are for validation and two for the test."""
    numbers = np.arange(count)
    splits = np.array(["train"] * 6 + ["valid"] * 2 + ["test"] * 2)[np.random.default_rng(0).permutation(numbers) % 10]
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in numbers],
            "label": np.where(numbers % 4 == 0, "dog", "cat"),
            "split": splits,
            "hash": [f"{number:064x}" for number in numbers],
            "width_px": 32,
            "height_px": 32,
            "mode": "RGB",
            "weight": 1.0,
        },
        columns=COLUMNS,
    )
    return Manifest("pets", Path("pets"), ["cat", "dog"], table, pd.DataFrame(columns=["path", "reason"]))


def split_of(known: Manifest, rows: npt.NDArray[np.int64]) -> set[str]:
    return set(known.table["split"].iloc[rows])


def pictures(count: int = 12) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def small_split(train: int = 8, valid: int = 4) -> Split:
    return Split(np.arange(train), np.arange(train, train + valid), np.arange(train + valid) % 2)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_test_split_is_in_neither_and_each_split_stays_with_its_own(fraction: float) -> None:
    known = pets()
    split = training_split(known, fraction, 0)
    assert split_of(known, split.train) == {"train"}
    assert split_of(known, split.valid) == {"valid"}


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_validation_split_is_never_reduced(fraction: float) -> None:
    known = pets()
    assert training_split(known, fraction, 0).valid.tolist() == known.rows("valid").tolist()


def test_the_whole_training_split_is_all_of_it() -> None:
    known = pets()
    assert training_split(known, 1.0, 0).train.tolist() == known.rows("train").tolist()


def test_a_smaller_fraction_lies_within_every_larger_one() -> None:
    chosen = [set(training_split(pets(), fraction, 0).train.tolist()) for fraction in FRACTIONS]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(chosen))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_fraction_takes_its_share_of_every_class(fraction: float) -> None:
    known = pets()
    split = training_split(known, fraction, 0)
    all_counts = np.bincount(known.targets[known.rows("train")])
    counts = np.bincount(known.targets[split.train], minlength=2)
    assert counts.tolist() == np.ceil(np.round(all_counts * fraction, 9)).astype(int).tolist()


def test_the_seed_decides_which_part_is_taken() -> None:
    first = training_split(pets(), 0.25, 0).train.tolist()
    assert training_split(pets(), 0.25, 0).train.tolist() == first
    assert training_split(pets(), 0.25, 1).train.tolist() != first


def test_targets_are_those_of_all_rows() -> None:
    known = pets()
    assert training_split(known, 0.5, 0).targets.tolist() == known.targets.tolist()


def test_weights_are_those_of_all_rows_and_none_where_they_say_nothing_of_the_rows_trained_on() -> None:
    known = pets()
    assert training_split(known, 1.0, 0).weights is None
    known.table["weight"] = 2.5
    assert training_split(known, 1.0, 0).weights is None
    known.table.loc[known.rows("valid"), "weight"] = 7.0
    assert training_split(known, 1.0, 0).weights is None
    known.table["weight"] = np.arange(1.0, 201.0)
    weights = training_split(known, 0.5, 0).weights
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == known.table["weight"].tolist()


def test_the_weights_of_a_table_count_in_training_and_equal_ones_of_any_value_change_no_bit(tmp_path: Path) -> None:
    for number in range(24):
        Image.new("L", (32, 32), 10 * number).save(tmp_path / f"{number}.png")

    def trained(weight: Callable[[int], str]) -> list[float]:
        lines = [f"{number}.png,{number % 2},{'valid' if number > 15 else ''},{weight(number)}" for number in range(24)]
        (tmp_path / "table.csv").write_text("\n".join(["path,label,split,weight", *lines]))
        known = build_manifest(list_source(str(tmp_path / "table.csv"), []), 0.2, 0.0, 0.0, 0)
        split, pixels = training_split(known, 1.0, 0), open_pixels(known, 32, "crop")
        torch.manual_seed(0)
        some = Network(build_body("test_resnet", 32), 3, 8, 0.5)
        train, valid = pixel_batches(pixels, split, ALWAYS, 4, CPU, 0)
        records = list(fit(Phase(some, thaw(some, "body", {"head": 0.01}, 0.01), train, valid, [2])))
        return [loss for record in records for loss in (record.train_loss, record.valid_loss)]  # type: ignore[union-attr]

    without = trained(lambda number: "")
    assert trained(lambda number: "0.3") == without
    assert trained(lambda number: "0.3" if number < 16 else "8") == without
    uneven = trained(lambda number: "30" if number % 4 else "")
    assert all(one != other for one, other in zip(uneven, without, strict=True))


def test_training_images_are_augmented_and_validation_images_are_not() -> None:
    pixels, split = pictures(), small_split()
    train, valid = pixel_batches(pixels, split, ALWAYS, 4, CPU, seed=0)
    assert train.augmentation == ALWAYS
    assert valid.augmentation is None
    plain = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    seen = torch.cat([images for images, _ in valid.epoch(0)])
    assert torch.equal(seen, plain[8:])
    for image in torch.cat([images for images, _ in train.epoch(0)]):
        assert not any(torch.allclose(image, one, atol=1e-2) for one in plain)


def test_training_batches_bring_each_pictures_weight_and_validation_batches_none() -> None:
    split = replace(small_split(16, 8), targets=np.arange(24), weights=np.arange(24, dtype=np.float32) / 2)
    train, valid = pixel_batches(pictures(24), split, ALWAYS, 4, CPU, seed=5)
    seen = [(targets, weights) for _, targets, weights in train.weighted_epoch(0)]
    assert len(seen) == 4
    for targets, weights in seen:
        assert weights is not None
        assert weights.tolist() == (targets / 2).tolist()
    assert [weights for *_, weights in valid.weighted_epoch(0)] == [None] * len(valid)


def test_training_batches_are_shuffled_by_the_seed_and_validation_batches_are_in_order() -> None:
    split = small_split(16, 8)
    train, valid = pixel_batches(pictures(24), split, ALWAYS, 4, CPU, seed=5)
    assert train.seed == 5
    assert valid.seed is None
    assert train.batch_size == 4
    assert train.rows.tolist() == split.train.tolist()
    assert valid.rows.tolist() == split.valid.tolist()


def test_class_weights_make_each_class_weigh_the_same():
    targets = np.array([0] * 6 + [1] * 2 + [2] * 4)
    rows = np.array([0, 1, 2, 3, 6, 8])
    weights = class_weights(targets, rows)
    assert [weights[rows][targets[rows] == label].sum() for label in (0, 1, 2)] == pytest.approx([2, 2, 2])
    assert weights.dtype == np.float32


def test_soft_labels_are_trained_on_and_validation_takes_the_likeliest_class(manifest: Manifest) -> None:
    shares = np.where(manifest.targets[:, None] == [0, 1], 0.75, 0.25)
    soft = replace(
        manifest, table=manifest.table.assign(**{"share/class 0": shares[:, 0], "share/class 1": shares[:, 1]})
    )
    split = training_split(soft, 1.0, 0)
    train, valid = pixel_batches(open_pixels(soft, 16, "crop"), split, ALWAYS, 4, CPU, 0)
    for _, targets in train.epoch(0):
        assert sorted(set(targets.flatten().tolist())) == [0.25, 0.75]
    assert {targets.dtype for _, targets in valid.epoch(0)} == {torch.int64}
    assert training_split(manifest, 1.0, 0).shares is None
