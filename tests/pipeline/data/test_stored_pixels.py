import errno
import json
import os
import shutil
import time
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cache import row_file
from pipeline.cache.row_file import JOURNAL
from pipeline.cache.store import is_whole
from pipeline.data import decoded_pixels, nvjpeg, stored_pixels
from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches, fetch_pixels
from pipeline.data.manifest import build_manifest, save_manifest
from pipeline.data.readers.listing import Listing
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import decoder_of, open_pixels
from pipeline.system.errors import UserError
from tests.forked_processes import fork_program

COUNT = 6


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """Four rows of 4 × 4 pixels each."""
    monkeypatch.setattr(row_file, "STRETCH_BYTES", 4 * 48)


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
    decode = decoded_pixels.decode_square

    def count(content, size_px, *others):
        sizes.append(size_px)
        return decode(content, size_px, *others)

    monkeypatch.setattr(decoded_pixels, "decode_square", count)
    return sizes


def stores(cache):
    return [path for path in (cache / "pixels").iterdir() if path.is_dir() and not path.name.startswith(".")]


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
    monkeypatch.setattr(nvjpeg, "read_header", lambda content: None)  # all is left to Pillow
    first = open_pixels(manifest, 8, "crop")
    assert "decoder" not in json.loads((first.folder / "store.json").read_text())["made_from"]
    second = open_pixels(manifest, 8, "crop", decoder="nvjpeg")
    assert json.loads((second.folder / "store.json").read_text())["made_from"]["decoder"] == "nvjpeg"
    assert second.folder != first.folder
    assert (second[:] == first[:]).all()


def test_another_version_of_what_decodes_is_another_store(manifest, monkeypatch):
    first = open_pixels(manifest, 8, "crop")
    monkeypatch.setattr(metadata, "version", lambda name: "99.0")
    assert open_pixels(manifest, 8, "crop").folder != first.folder


def test_pixels_say_what_decoded_them(manifest, monkeypatch):
    monkeypatch.setattr(nvjpeg, "read_header", lambda content: None)
    for decoder in ("pillow", "nvjpeg"):
        for max_store_gib in (0, 1):
            assert decoder_of(open_pixels(manifest, 8, "crop", max_store_gib, decoder=decoder)) == decoder


def test_without_the_pictures_a_fetched_store_of_the_other_decoder_is_used(manifest, tmp_path, monkeypatch):
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


def streamed(manifest, size_px=8, fit="crop"):
    return open_pixels(manifest, size_px, fit, max_store_gib=0)


ROWS = [3, slice(None), slice(2, 5), np.array([5, 0, 5, 11]), np.arange(0), [1, 2], np.int64(4), -1]


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_past_the_disk_budget_the_same_pixels_come_without_a_store(manifest, cache, rows, fit):
    stream = streamed(manifest, fit=fit)
    assert not (cache / "pixels").exists()
    store = open_pixels(manifest, 8, fit)
    assert (stream[rows] == store[rows]).all()
    assert stream[rows].shape == store[rows].shape
    assert (stream.shape, stream.dtype, len(stream)) == (store.shape, store.dtype, len(store))


def test_batches_from_store_and_stream_are_the_same_bit_for_bit(tmp_path):
    listing = list_source("elpv", [])
    cells = Listing("cells", listing.root, listing.paths[::60], listing.labels[::60])
    manifest = build_manifest(cells, 0.2, 0.2, 0.0, 0)
    cpu = torch.device("cpu")
    augmentation = Augmentation("all", 10, 1.1, 0.9, 0.2, 0.75)
    fetches = [fetch_pixels(pixels, cpu) for pixels in (open_pixels(manifest, 48, "crop"), streamed(manifest, 48))]
    rows, targets = manifest.rows("train"), manifest.targets
    for epoch in range(2):
        both = [list(Batches(fetch, rows, targets, 8, cpu, 0, augmentation).epoch(epoch)) for fetch in fetches]
        assert len(both[0]) == len(both[1]) > 1
        for stored, decoded in zip(*both, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(stored, decoded, strict=True))


def test_the_budget_is_a_number_of_gib(manifest, cache, capsys):
    gib = 2 * COUNT * 8 * 8 * 3 / 2**30
    open_pixels(manifest, 8, "crop", 0.99 * gib)
    assert not (cache / "pixels").exists()
    output = capsys.readouterr().out
    assert "pixels at 8 px would take 0.0 GiB, more than data.max_store_gib = 2.1" in output
    assert output.rstrip().endswith("pictures are decoded as they are needed")
    open_pixels(manifest, 8, "crop", gib)
    assert len(stores(cache)) == 1


def test_where_the_disk_has_too_little_room_pixels_are_streamed(manifest, cache, capsys, monkeypatch):
    monkeypatch.setattr(stored_pixels.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    pixels = open_pixels(manifest, 8, "crop")
    assert (pixels[3] == 30).all()
    assert stores(cache) == []
    assert f"more than the 0.0 GiB that are free in {cache}" in capsys.readouterr().out


def test_where_the_disk_fills_up_meanwhile_pixels_are_streamed(manifest, cache, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored_pixels, "write_rows", fill)
    assert (open_pixels(manifest, 8, "crop")[3] == 30).all()
    assert stores(cache) == []


def test_a_streamed_picture_that_changed_is_named(manifest):
    pixels = streamed(manifest)
    Image.new("RGB", (20, 12), "white").save(manifest.root / "dog" / "09.png")
    assert (pixels[[8, 10]] == np.array([80, 100]).reshape(2, 1, 1, 1)).all()
    with pytest.raises(UserError, match=r"09\.png is not what it was"):
        pixels[[8, 9]]


def test_rows_whose_pages_were_released_can_be_read_again(manifest, monkeypatch):
    monkeypatch.setattr(stored_pixels, "MAPPED_BYTES", 1)
    pixels = open_pixels(manifest, 8, "crop")
    first = pixels[:]
    for row in range(2 * COUNT):
        assert (pixels[row] == first[row]).all()


def test_a_build_is_resumed_after_a_stop(manifest, decoded, cache, capsys, monkeypatch):
    decode, eighth = decoded_pixels.decode_square, manifest.paths[7].read_bytes()

    def stop(content, *arguments):
        if content == eighth:
            raise KeyboardInterrupt
        return decode(content, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(decoded_pixels, "decode_square", stop)
        with pytest.raises(KeyboardInterrupt):
            open_pixels(manifest, 8, "crop")
    assert stores(cache) == []
    decoded.clear()
    pixels = open_pixels(manifest, 8, "crop")
    assert "decoding is resumed after the 7 pictures that were done before" in capsys.readouterr().out
    assert len(decoded) == 2 * COUNT - 7
    assert [int(pixels[row].mean()) for row in range(2 * COUNT)] == list(range(0, 20 * COUNT, 10))
    assert not list((cache / "pixels").glob(".*.partial"))


def test_a_store_has_the_checksum_of_its_file_without_reading_it_again(manifest, cache, monkeypatch):
    monkeypatch.delattr("pipeline.cache.store.file_checksum")
    open_pixels(manifest, 8, "crop")
    [folder] = stores(cache)
    assert is_whole(folder, contents=True)


BUILDER = r"""
import os, sys, threading, time
from pathlib import Path
from pipeline.cache import row_file
from pipeline.data import decoded_pixels, stored_pixels
from pipeline.data.manifest import load_manifest
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # else all are decoded before any is written
decode, slow, pictures = decoded_pixels.decode_square, float(sys.argv[2]), threading.Semaphore(int(sys.argv[3]))
row_file.STRETCH_SECONDS = 0
def decode_slowly(*arguments):
    pictures.acquire()  # after the last of these it waits for ever
    time.sleep(slow)
    os.write(1, b"decoded\n")  # whole, whichever thread it is
    return decode(*arguments)
decoded_pixels.decode_square = decode_slowly
pixels = stored_pixels.open_pixels(load_manifest(Path(sys.argv[1])), 8, "crop")
print(pixels[:].mean(axis=(1, 2, 3)).tolist(), flush=True)
"""


def builder(folder, seconds=0.0, pictures=2 * COUNT):
    return fork_program(BUILDER, folder, seconds, pictures)


def test_a_build_is_resumed_after_a_kill(manifest, tmp_path, cache):
    save_manifest(manifest, tmp_path / "saved")
    killed = builder(tmp_path / "saved", pictures=9)
    for _ in range(9):
        killed.stdout.readline()
    while not (journals := list(cache.rglob(JOURNAL))) or not journals[0].read_text().endswith("\n"):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not list(cache.glob("pixels/*/store.json"))
    done = int(journals[0].read_text().splitlines()[-1].split()[0])
    printed = builder(tmp_path / "saved").communicate(timeout=600)[0].splitlines()
    assert printed[-1] == str([10.0 * row for row in range(2 * COUNT)])
    assert printed.count("decoded") == 2 * COUNT - done


def test_of_two_processes_that_want_a_store_one_builds_it(manifest, tmp_path, cache):
    save_manifest(manifest, tmp_path / "saved")
    both = [builder(tmp_path / "saved", seconds=0.05) for _ in range(2)]
    printed = [one.communicate(timeout=600)[0].splitlines() for one in both]
    assert [lines[-1] for lines in printed] == [str([10.0 * row for row in range(2 * COUNT)])] * 2
    assert sorted(lines.count("decoded") for lines in printed) == [0, 2 * COUNT]
