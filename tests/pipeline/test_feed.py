"""Without a GPU: what is read ahead, and that it is the same. On one, that its memory gives the same rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.augment import Augmentation
from pipeline.decode import Pixels
from pipeline.feed import feed, reader, resident
from pipeline.manifest import Manifest, build_manifest
from pipeline.pixels import StoredPixels, open_pixels
from pipeline.sources import list_source
from pipeline.tune import Split, pixel_batches

CPU = torch.device("cpu")
HOW = Augmentation("all", 20, 1.2, 0.7, 0.3, 0.75, mixup=0.4)


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
    train, valid = pixel_batches(pixels, split, HOW, 4, CPU, seed=3)
    return [*train.epoch(2), *train.epoch(2, 1), *valid.epoch(0)]


def test_pictures_that_are_decoded_as_they_are_needed_give_the_batches_of_a_store_bit_for_bit(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(open_pixels(manifest, 16, "crop"), manifest)
    decoded = open_pixels(manifest, 16, "crop", max_store_gib=0)
    assert reader(decoded, CPU)[1] > 0
    for workers in (1, 2, 4):
        monkeypatch.setattr("pipeline.feed.WORKERS_THAT_DECODE", workers)
        found = batches_of(decoded, manifest)
        assert len(found) == len(expected)
        for (images, targets), (same_images, same_targets) in zip(found, expected, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(targets, same_targets)


def test_on_a_cpu_a_store_is_read_where_it_lies(manifest: Manifest) -> None:
    pixels = open_pixels(manifest, 16, "crop")
    assert feed(pixels, np.arange(4), CPU)[1] == 0
    assert resident(pixels, np.arange(4), CPU) is None


def test_rows_read_past_the_map_are_those_read_through_it(manifest: Manifest) -> None:
    pixels = open_pixels(manifest, 16, "crop")
    assert isinstance(pixels, StoredPixels)
    rows = np.array([5, 0, 23, 5])
    place = np.empty((4, *pixels.shape[1:]), dtype=np.uint8)
    pixels.read_into(rows, place)
    assert np.array_equal(place, pixels[rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.4, 0.0], ids=["resident", "pinned"])
def test_a_gpu_is_fed_the_same_images(manifest: Manifest, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.feed.RESIDENT_SHARE", share)
    pixels, rows = open_pixels(manifest, 16, "crop"), np.array([7, 2, 11])
    fetch, workers = feed(pixels, np.array([2, 7, 9, 11]), torch.device("cuda"))
    assert workers == (0 if share else 1)
    assert torch.allclose(fetch(rows).cpu(), reader(pixels, CPU)[0](rows), atol=1e-6)  # a GPU divides otherwise
