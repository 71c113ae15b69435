import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline import pixels as pixel_store
from pipeline.errors import UserError
from pipeline.manifest import build_manifest
from pipeline.pixels import open_pixels
from pipeline.sources import list_source

COUNT = 6


def photos(root, mode="RGB", size=(20, 12)):
    """Two classes of flat pictures, each of a brightness of its own: 0, 10, 20, … in the order of the manifest."""
    for row in range(2 * COUNT):
        folder = root / ("cat" if row < COUNT else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * row,) * 3).convert(mode).save(folder / f"{row:02d}.png")
    return root


def manifest_of(root):
    return build_manifest(list_source(str(root), [".png"]), 0.2, 0.2, 0.0, 0)


@pytest.fixture
def manifest(tmp_path):
    return manifest_of(photos(tmp_path / "photos"))


@pytest.fixture
def decoded(monkeypatch):
    """The sizes that pictures are decoded to from now on."""
    sizes = []
    decode = pixel_store.decode_square

    def count(content, size_px, fit, grey):
        sizes.append(size_px)
        return decode(content, size_px, fit, grey)

    monkeypatch.setattr(pixel_store, "decode_square", count)
    return sizes


def stores(cache):
    return [path for path in (cache / "pixels").iterdir() if path.is_dir()]


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_colour_has_three_channels_and_grey_one(tmp_path, mode, channels):
    pixels = open_pixels(manifest_of(photos(tmp_path / "photos", mode)), 8, "squish")
    assert pixels.shape == (2 * COUNT, 8, 8, channels)
    assert pixels.dtype == np.uint8


def test_pictures_lie_in_the_order_of_the_manifest(manifest):
    pixels = open_pixels(manifest, 8, "crop")
    for row, path in enumerate(manifest.paths):
        assert (pixels[row] == 10 * int(path.stem)).all()


def test_pixels_are_mapped_and_cannot_be_changed(manifest):
    pixels = open_pixels(manifest, 8, "crop")
    before = pixels[:]
    with pytest.raises(TypeError, match="does not support item assignment"):
        pixels[0] = 1
    pixels[0][:] = pixels[[0, 1]][:] = 1
    assert (pixels[:] == before).all()


def test_the_second_time_nothing_is_decoded(manifest, decoded):
    first = np.array(open_pixels(manifest, 8, "crop"))
    assert len(decoded) == 2 * COUNT
    assert (open_pixels(manifest, 8, "crop") == first).all()
    assert len(decoded) == 2 * COUNT


def test_the_same_pictures_elsewhere_are_not_decoded_again(manifest, tmp_path, decoded):
    open_pixels(manifest, 8, "crop")
    manifest.root.rename(tmp_path / "moved")
    open_pixels(manifest_of(tmp_path / "moved"), 8, "crop")
    assert len(decoded) == 2 * COUNT


def test_another_size_or_fit_is_another_store(manifest, decoded, cache):
    crop, pad, larger = (open_pixels(manifest, size, fit) for size, fit in ((8, "crop"), (8, "pad"), (10, "crop")))
    assert decoded == [8] * 4 * COUNT + [10] * 2 * COUNT
    assert larger.shape[1:3] == (10, 10)
    assert (crop[-1] == crop[-1, 0, 0]).all()
    assert (pad[-1, 0] == 0).all()
    assert len(stores(cache)) == 3


def test_the_same_pictures_in_another_order_are_another_store(manifest, tmp_path):
    first = open_pixels(manifest, 8, "crop")
    manifest.table.iloc[:] = manifest.table.iloc[::-1].to_numpy()
    assert (open_pixels(manifest, 8, "crop") == first[::-1]).all()


def test_another_decoder_is_another_store_and_pillow_keeps_the_one_it_had(manifest, cache, monkeypatch):
    from pipeline import nvjpeg

    monkeypatch.setattr(nvjpeg, "read_header", lambda content: None)  # all is left to Pillow
    first = open_pixels(manifest, 8, "crop")
    assert "decoder" not in json.loads((first.folder / "store.json").read_text())["made_from"]
    second = open_pixels(manifest, 8, "crop", decoder="nvjpeg")
    assert json.loads((second.folder / "store.json").read_text())["made_from"]["decoder"] == "nvjpeg"
    assert second.folder != first.folder
    assert (second[:] == first[:]).all()


def test_where_the_pictures_are_not_a_store_of_the_other_decoder_that_was_fetched_will_do(
    manifest, tmp_path, monkeypatch
):
    from pipeline import nvjpeg

    monkeypatch.setattr(nvjpeg, "read_header", lambda content: None)
    made = open_pixels(manifest, 8, "crop", decoder="nvjpeg")
    expected = made[:]
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "elsewhere"))

    def fetch(folder):
        shutil.copytree(made.folder, folder, dirs_exist_ok=True)
        return True

    manifest.root.rename(tmp_path / "gone")
    assert (open_pixels(manifest, 8, "crop", fetch=fetch)[:] == expected).all()


def test_new_pictures_are_another_store(manifest, decoded):
    open_pixels(manifest, 8, "crop")
    Image.new("RGB", (20, 12), "white").save(manifest.root / "cat" / "00.png")
    assert (open_pixels(manifest_of(manifest.root), 8, "crop")[0] == 255).all()
    assert len(decoded) == 4 * COUNT


def test_a_store_that_lost_its_end_is_decoded_again(manifest, decoded, cache):
    first = np.array(open_pixels(manifest, 8, "crop"))
    file = next(cache.rglob("pixels.npy"))
    os.truncate(file, file.stat().st_size - 1)
    assert (open_pixels(manifest, 8, "crop") == first).all()
    assert len(decoded) == 4 * COUNT


def test_a_picture_that_changed_after_the_manifest_is_named(manifest, cache):
    Image.new("RGB", (20, 12), "white").save(manifest.root / "dog" / "09.png")
    with pytest.raises(UserError, match=r"09\.png is not what it was \(its content has changed\); run precompute"):
        open_pixels(manifest, 8, "crop")
    assert stores(cache) == []


def test_a_picture_that_went_away_is_named_and_nothing_half_done_stays(manifest, cache):
    (manifest.root / "cat" / "03.png").rename(manifest.root / "03.png")
    with pytest.raises(UserError, match=r"03\.png is not what it was .*No such file"):
        open_pixels(manifest, 8, "crop")
    assert stores(cache) == []
    (manifest.root / "03.png").rename(manifest.root / "cat" / "03.png")
    assert (open_pixels(manifest, 8, "crop")[3] == 30).all()
