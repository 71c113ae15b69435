import errno
import os
import sqlite3
import tempfile
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.cache.hashing import content_key
from pipeline.cache.markers import half_done
from pipeline.cache.store import cache_folder, is_whole, locked, open_or_build, publish
from pipeline.models.activations import StoreSettings, open_activations, read_activations
from pipeline.models.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from pipeline.system.arrays import allocate_array
from pipeline.system.disk import free_bytes, report_full_disk
from pipeline.system.errors import UserError
from tests.forked_processes import fork_program

KEY_PARTS = {"size_px": 8}
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
@pytest.mark.parametrize("shape", [(3,), (5, 4, 4, 3), (1, 1000)])
def test_an_allocated_array_is_the_one_that_numpy_would_have_made(tmp_path, shape, dtype):
    mapped = allocate_array(tmp_path / "array.npy", shape, dtype)
    assert (mapped == 0).all()
    mapped[:] = np.arange(mapped.size).reshape(shape) % 100
    mapped.flush()
    np.save(tmp_path / "numpy.npy", np.array(mapped))
    assert (tmp_path / "array.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_an_allocated_array_has_its_blocks_on_the_disk(tmp_path):
    allocate_array(tmp_path / "array.npy", (1000, 1000), "uint8")
    assert (tmp_path / "array.npy").stat().st_blocks * 512 >= 1000 * 1000


def refuse(*_):
    raise OSError(errno.EOPNOTSUPP, "not on this file system")


@pytest.mark.parametrize("lacks", ["the call", "support"])
def test_where_nothing_can_be_allocated_zeros_are_written(tmp_path, monkeypatch, lacks):
    if lacks == "the call":
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    mapped = allocate_array(tmp_path / "array.npy", (1234, 1000), "uint8")
    assert mapped.shape == (1234, 1000)
    assert not mapped.any()
    assert (tmp_path / "array.npy").stat().st_blocks * 512 >= 1234 * 1000


@pytest.mark.parametrize("lacks_support", [False, True])
def test_an_array_without_room_is_refused_and_leaves_no_file(small_disk, monkeypatch, lacks_support):
    if lacks_support:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = free_bytes(small_disk)
    with pytest.raises(OSError, match="No space left") as raised:
        allocate_array(small_disk / "array.npy", (5000, 1000), "uint8")
    assert raised.value.needed_bytes == 5_000_000
    assert list(small_disk.iterdir()) == []
    assert free_bytes(small_disk) == before


def write_plainly(folder):
    (folder / "plain.bin").write_bytes(bytes(5_000_000))


def write_safetensors(folder):
    save_file({"weights": torch.zeros(1_250_000)}, folder / "weights.safetensors")


def write_database(folder):
    with closing(sqlite3.connect(folder / "rows.sqlite")) as database:
        database.execute("create table rows (content blob)")
        database.execute("insert into rows values (zeroblob(5000000))")
        database.commit()


def write_array(folder):
    allocate_array(folder / "array.npy", (5000, 1000), "uint8")


def write_and_wrap(folder):
    try:
        write_plainly(folder)
    except OSError as error:
        raise RuntimeError("could not be logged") from error


WRITERS = [write_plainly, write_safetensors, write_database, write_array, write_and_wrap]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_reported_in_one_sentence_whatever_raises_the_error(small_disk, write):
    with pytest.raises(UserError) as raised, report_full_disk("the numbers", small_disk, "buy a larger one"):
        write(small_disk)
    sentence = str(raised.value)
    assert sentence.startswith("No space left on the disk of ")
    assert "while writing the numbers (" in sentence
    assert sentence.endswith("; buy a larger one, and run the same command again: it resumes from there.")
    assert "\n" not in sentence


def test_needed_and_free_bytes_are_reported(small_disk):
    with pytest.raises(UserError, match=r"\(5\.0 MB needed, 4\.2 MB free\)"), report_full_disk("numbers", small_disk):
        write_array(small_disk)


def test_a_quota_counts_as_a_full_disk(tmp_path):
    with pytest.raises(UserError, match=r"^The quota is used up on the disk of"), report_full_disk("numbers", tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize("advice", ["", "free some of the cache"])
def test_a_full_folder_of_temporary_files_can_be_moved(tmp_path, monkeypatch, advice):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="point TMPDIR to a larger disk"), report_full_disk("numbers", cache, advice):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "temporary" / "file"))


def test_if_neither_error_nor_caller_names_a_folder_the_fullest_disk_is_reported(small_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(UserError, match=f"the disk of {small_disk} while writing numbers"), report_full_disk("numbers"):
        write_safetensors(small_disk)


@pytest.mark.parametrize("error", [UserError("a mistake"), OSError(errno.EACCES, "denied"), ValueError("28")])
def test_other_errors_are_left_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as raised, report_full_disk("numbers", tmp_path):
        raise error
    assert raised.value is error


def test_the_free_space_of_a_folder_yet_to_be_made_is_that_of_its_disk(small_disk):
    assert free_bytes(small_disk / "not" / "yet" / "there") == free_bytes(small_disk) <= 4 * 2**20


def leftovers(cache):
    """Folders and arrays in the cache."""
    return [path for path in cache.glob("*/*") if path.is_dir()] + list(cache.rglob("*.npy"))


@pytest.mark.parametrize("kind", ["pixels", "activations", "artifacts"])
@pytest.mark.parametrize("write", WRITERS)
def test_a_store_without_room_is_not_published_and_a_rerun_with_room_builds_it(small_disk, kind, write):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(3_000_000))
    with pytest.raises(UserError, match=r"python -m pipeline cache clear --max-gb N` or point THAW_CACHE"):
        open_or_build(kind, KEY_PARTS, write)
    assert leftovers(cache_folder()) == []
    filler.unlink()

    def write_less(folder):
        allocate_array(folder / "array.npy", (1500, 1000), "uint8")

    folder, found = open_or_build(kind, KEY_PARTS, write_less)
    assert not found
    assert is_whole(folder, contents=True)


def test_what_is_there_can_be_read_on_a_full_disk(small_disk):
    def write_little(folder):
        (folder / "text.txt").write_text("all of it")

    folder, _ = open_or_build("kind", KEY_PARTS, write_little)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(5_000_000))
    assert free_bytes(small_disk) == 0
    assert open_or_build("kind", KEY_PARTS, write_plainly) == (folder, True)


def activation_key(count):
    return {"pictures": str(count), "backbone": "test_resnet", "dtype": "float32"}


def test_activations_without_room_are_reported_and_not_half_published(small_disk):
    network = build_network(Checkpoint("test_resnet", ["a", "b"], 8, 0.5, 32, "crop", False))
    many, few = (np.zeros((count, 32, 32, 3), np.uint8) for count in (12000, 40))
    with pytest.raises(UserError, match=r"while writing the activation store \(.* MB needed, 4\.2 MB free\)"):
        open_activations(network, many, activation_key(12000), StoreSettings(64, "float32", CPU))
    assert leftovers(cache_folder()) == []
    folder = open_activations(network, few, activation_key(40), StoreSettings(64, "float32", CPU))
    assert read_activations(folder).shape == (40, network.width)


def test_a_checkpoint_without_room_leaves_the_last_one(small_disk):
    facts = Checkpoint("test_resnet", ["a", "b"], 8, 0.5, 32, "crop", False)
    network = build_network(facts)
    store = cache_folder() / "checkpoints" / "abc"
    with locked(store):
        publish(store, {"epoch": 1}, lambda folder: save_checkpoint(network, facts, folder))
        filler = small_disk / "filler"
        filler.write_bytes(bytes(free_bytes(small_disk) - 500_000))
        with pytest.raises(UserError, match="while writing the checkpoint "):
            publish(store, {"epoch": 2}, lambda folder: save_checkpoint(network, facts, folder))
        assert half_done(store) == []
        assert is_whole(store, contents=True)
        assert load_checkpoint(store)[1] == facts
        filler.unlink()
        publish(store, {"epoch": 2}, lambda folder: save_checkpoint(network, facts, folder))
    assert '"epoch": 2' in (store / "store.json").read_text()


PIXELS = """
import sys
from pathlib import Path
from pipeline.system.errors import UserError
from pipeline.data.manifest import build_manifest
from pipeline.data.stored_pixels import open_pixels
from pipeline.data.readers.sources import list_source

manifest = build_manifest(list_source(sys.argv[1], [".png"]), 0.2, 0.2, 0.0, 0)
try:
    open_pixels(manifest, int(sys.argv[2]), "crop")
except UserError as error:
    sys.exit(str(error))
"""


def test_pixels_without_room_are_decoded_as_they_are_needed_and_not_half_published(small_disk, tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(6):
            picture = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / label / f"{index}.png")

    def run(size_px):
        process = fork_program(PIXELS, tmp_path / "photos", size_px)
        return process.communicate()[0], process.returncode

    printed, code = run(400)
    assert code == 0, printed
    assert "pictures are decoded as they are needed" in printed
    assert leftovers(cache_folder()) == []
    assert run(100)[1] == 0


def test_keys_of_stores_do_not_depend_on_the_disk(small_disk):
    assert open_or_build("kind", KEY_PARTS, lambda folder: None)[0].name == content_key(KEY_PARTS)
