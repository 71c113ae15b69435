"""Pixels are saved with the precompute run, and are available without the cache and the pictures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import tracking
from pipeline.cache.markers import used_by
from pipeline.data import nvjpeg
from pipeline.data.manifest import Manifest, build_manifest, load_manifest, save_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.remote.fetch import fetch_listing
from pipeline.data.stored_pixels import FILE
from pipeline.models.checkpoint import Checkpoint
from pipeline.recipe.picture_sections import Data
from pipeline.runs import pixels as runs_pixels
from pipeline.runs.pixels import open_run_pixels
from pipeline.system.errors import UserError
from tests.picture_server import picture_server

pytestmark = pytest.mark.usefixtures("tracking_server")

EVERYTHING = slice(None)
CHECKPOINT = Checkpoint("test_resnet", ["cat", "dog"], 8, 0.5, image_px=16, fit="crop", grey=False)


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
    data = Data(max_store_gib=1.0, max_logged_gib=max_logged_gib)
    return open_run_pixels(precompute, run_id, manifest, CHECKPOINT, data, torch.device("cpu"))[EVERYTHING]


def move_to_another_machine(manifest: Manifest, cache: Path) -> None:
    shutil.rmtree(cache)
    shutil.rmtree(manifest.root)


def test_without_cache_and_pictures_they_come_from_the_precompute_run(precompute, pictures, cache):
    first = open_for(precompute, pictures)
    assert tracking.has_artifact(precompute, f"pixels/16/{FILE}")
    move_to_another_machine(pictures, cache)
    assert np.array_equal(open_for(precompute, pictures), first)


def test_pixels_of_another_decoder_are_not_taken_for_those_that_the_recipe_asks_for(
    precompute, pictures, cache, monkeypatch
):
    with monkeypatch.context() as there:
        there.setattr(nvjpeg, "read_header", lambda content: None)  # all is left to Pillow
        there.setattr(runs_pixels, "choose_decoder", lambda choice, device: "nvjpeg")
        open_for(precompute, pictures)
    move_to_another_machine(pictures, cache)
    data = Data(max_store_gib=1.0, max_logged_gib=1.0, decoder="pillow")
    with pytest.raises(UserError, match=r"data\.decoder is pillow, but .* as decoded by nvjpeg; set data\.decoder"):
        open_run_pixels(precompute, "later", pictures, CHECKPOINT, data, torch.device("cpu"))


def test_pixels_that_are_too_large_are_not_saved_with_the_run_and_that_is_reported_when_they_are_missing(
    precompute, pictures, cache
):
    open_for(precompute, pictures, max_logged_gib=0.0)
    assert not tracking.has_artifact(precompute, "pixels/16")
    move_to_another_machine(pictures, cache)
    with pytest.raises(UserError, match="not on this machine, and their pixels at 16 px are not among the files"):
        open_for(precompute, pictures)


def test_pixels_that_were_damaged_on_the_server_are_decoded_again(precompute, pictures, cache):
    first = open_for(precompute, pictures)
    kept = tracking.artifact(precompute, "pixels/16") / FILE
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    shutil.rmtree(cache)
    assert np.array_equal(open_for(precompute, pictures), first)


def test_pixels_of_other_pictures_are_not_used(precompute, pictures, cache, tmp_path):
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
    store = next(path for path in (cache / "pixels").iterdir() if path.is_dir())
    assert used_by(store) == ["one", "two"]


@pytest.mark.parametrize("max_store_gib", [1.0, 0.0], ids=["stored", "decoded each time"])
def test_another_machine_fetches_pictures_that_are_at_addresses_if_it_needs_them(
    precompute, pictures, cache, tmp_path, max_store_gib
):
    with picture_server(pictures.root) as server:
        rows = [f"{server.uri}/{path},{path.partition('/')[0]}" for path in pictures.table["path"]]
        (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows]))
        listing = fetch_listing(list_source(str(tmp_path / "pets.csv"), []), 1.0, 24.0)
        save_manifest(build_manifest(listing, 0.3, 0.2, 0.0, 0), tmp_path / "manifest")
        shutil.rmtree(cache)
        manifest = load_manifest(tmp_path / "manifest")
        data = Data(max_store_gib=max_store_gib, max_logged_gib=0.0)
        pixels = open_run_pixels(precompute, "later", manifest, CHECKPOINT, data, torch.device("cpu"))[EVERYTHING]
        assert pixels.shape == (12, 16, 16, 3)
        assert server.count("GET") == 2 * 12
        shutil.rmtree(cache)
        server.statuses["cat/0.png"] = 404
        with pytest.raises(UserError, match=r"1 pictures of the precompute run are gone, such as http://.*/cat/0\.png"):
            open_run_pixels(precompute, "later", manifest, CHECKPOINT, data, torch.device("cpu"))
