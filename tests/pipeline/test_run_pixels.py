"""Pixels go with the precompute run, to be had where neither the cache nor the pictures are."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.errors import UserError
from pipeline.manifest import Manifest, build_manifest
from pipeline.pixels import FILE
from pipeline.run_pixels import open_run_pixels
from pipeline.sidecars import used_by
from pipeline.sources import list_source

pytestmark = pytest.mark.usefixtures("tracking_server")

EVERYTHING = slice(None)


@pytest.fixture
def pictures(tmp_path: Path) -> Manifest:
    noise = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(6):
            pixels = noise.integers(0, 255, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.png")
    listing = list_source(str(tmp_path / "pictures"), [".png"])
    return build_manifest(listing, 0.3, 0.2, 0.0, 0)


@pytest.fixture
def precompute() -> str:
    with tracking.open_run("precompute", {tracking.STAGE: "precompute"}, {}) as run_id:
        return run_id


def open_for(precompute: str, manifest: Manifest, run_id: str = "later", max_logged_gib: float = 1.0) -> np.ndarray:
    return open_run_pixels(precompute, run_id, 1.0, max_logged_gib, manifest, 16, "crop")[EVERYTHING]


def move_to_another_machine(manifest: Manifest, cache: Path) -> None:
    shutil.rmtree(cache)
    shutil.rmtree(manifest.root)


def test_without_cache_and_pictures_they_come_from_the_precompute_run(precompute, pictures, cache):
    first = open_for(precompute, pictures)
    assert tracking.has_artifact(precompute, f"pixels/16/{FILE}")
    move_to_another_machine(pictures, cache)
    assert np.array_equal(open_for(precompute, pictures), first)


def test_pixels_that_are_too_large_do_not_go_with_the_run_and_that_is_told_where_they_are_missed(
    precompute, pictures, cache
):
    open_for(precompute, pictures, max_logged_gib=0.0)
    assert not tracking.has_artifact(precompute, "pixels/16")
    move_to_another_machine(pictures, cache)
    with pytest.raises(UserError, match="not on this machine, and their pixels at 16 px are not among the files"):
        open_for(precompute, pictures)


def test_pixels_that_were_damaged_on_the_way_are_decoded_anew(precompute, pictures, cache):
    first = open_for(precompute, pictures)
    kept = tracking.artifact(precompute, "pixels/16") / FILE
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    shutil.rmtree(cache)
    assert np.array_equal(open_for(precompute, pictures), first)


def test_pixels_of_other_pictures_are_not_taken(precompute, pictures, cache, tmp_path):
    open_for(precompute, pictures)
    shutil.rmtree(cache)
    changed = tmp_path / "pictures" / "cat" / "0.png"
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(changed)
    other = build_manifest(list_source(str(tmp_path / "pictures"), [".png"]), 0.3, 0.2, 0.0, 0)
    row = other.table.index[other.table["path"] == "cat/0.png"][0]
    assert not open_for(precompute, other)[row].any()


def test_the_store_knows_which_runs_used_it(precompute, pictures, cache):
    for run_id in ("one", "two", "one"):
        open_for(precompute, pictures, run_id)
    store = next(place for place in (cache / "pixels").iterdir() if place.is_dir())
    assert used_by(store) == ["one", "two"]
