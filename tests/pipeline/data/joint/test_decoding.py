"""A store that several processes decode is the one that one decodes, byte for byte."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import Decoder
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.joint import decoding
from pipeline.data.joint.decoding import decoded_blocks
from pipeline.data.manifest import Manifest, build_manifest, load_manifest, save_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import FILE, StoredPixels, open_pixels
from pipeline.ranks.exchange import ask_all
from pipeline.ranks.team import deal, together
from tests.drawn_pictures import draw_pictures
from tests.several_processes import run_led

PX = 16


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of JPEGs, which each decoder decodes by itself."""
    table = draw_pictures(tmp_path / "pictures")
    for path in table.parent.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
    table.write_text(table.read_text().replace(".png", ".jpg"))
    listing = list_source(str(table), [])
    found = build_manifest(listing, 0.2, 0.2, 0.0, 0)
    save_manifest(found, tmp_path / "manifest")
    return found


def use_blocks_of(rows: int) -> None:
    """All processes call it, since tests have few pictures."""
    decoding.LARGEST_BLOCK_ROWS = rows


def count_decoded() -> None:
    """Count, in each process, the rows that it decodes."""
    get = DecodedPixels.__getitem__
    COUNTED.clear()

    def counted(self: DecodedPixels, rows: slice) -> np.ndarray:
        found = get(self, rows)
        COUNTED.append(len(found))
        return found

    DecodedPixels.__getitem__ = counted  # type: ignore[method-assign,assignment]


COUNTED: list[int] = []


def ask_counts() -> list[int]:
    return ask_all(sum(COUNTED))


def lead(folder: Path, rows: int, first: int) -> None:
    manifest = load_manifest(folder / "manifest")
    with together(use_blocks_of, rows):
        use_blocks_of(rows)
    with together(count_decoded):
        count_decoded()
    source = DecodedPixels(manifest, PX, "crop")
    blocks, size = decoded_blocks(source, first)
    found = np.concatenate(list(blocks))
    with together(ask_counts):
        counts = ask_counts()
    np.save(folder / "found.npy", found)
    (folder / "counts.json").write_text(json.dumps([size, counts]))


@pytest.mark.parametrize(("rows", "first"), [(5, 0), (7, 11), (40, 0)])
def test_each_process_decodes_its_part_and_the_blocks_come_in_order(tmp_path, manifest, rows, first):
    run_led(lead, tmp_path, rows, first, processes=3, cache=tmp_path / "cache")
    expected = DecodedPixels(manifest, PX, "crop")[first:]
    assert (np.load(tmp_path / "found.npy") == expected).all()
    size, counts = json.loads((tmp_path / "counts.json").read_text())
    assert size == rows
    assert sum(counts) == len(expected)
    assert max(counts) - min(counts) <= (rows if rows < 40 else 72)


def lead_a_store(folder: Path, decoder: Decoder) -> None:
    manifest = load_manifest(folder / "manifest")
    with together(use_blocks_of, 4):
        use_blocks_of(4)
    with together(count_decoded):
        count_decoded()
    assert isinstance(open_pixels(manifest, PX, "crop", decoder=decoder), StoredPixels)
    with together(ask_counts):
        assert all(ask_counts())


@pytest.mark.parametrize("decoder", ["pillow", "nvjpeg"])
def test_the_store_is_that_of_one_process_and_each_decodes_for_it(tmp_path, manifest, cache, decoder):
    alone = open_pixels(manifest, PX, "crop", decoder=decoder)
    assert isinstance(alone, StoredPixels)
    run_led(lead_a_store, tmp_path, decoder, processes=2, cache=tmp_path / "other cache")
    shared = tmp_path / "other cache" / "pixels" / alone.folder.name / FILE
    assert shared.read_bytes() == (alone.folder / FILE).read_bytes()


def lead_that_stops(folder: Path) -> None:
    with together(use_blocks_of, 4):
        use_blocks_of(4)
    blocks, _ = decoded_blocks(DecodedPixels(load_manifest(folder / "manifest"), PX, "crop"), 0)
    next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    with together(ask_counts):
        (folder / "answers").write_text(str(ask_counts()))


def test_helpers_stop_where_the_leader_does_and_hear_the_next_call(tmp_path, manifest):
    run_led(lead_that_stops, tmp_path, processes=2, cache=tmp_path / "cache")
    assert (tmp_path / "answers").exists()


def lead_without_pictures(folder: Path) -> None:
    with together(lose_pictures, folder):
        lose_pictures(folder)
    lead(folder, 5, 0)


def lose_pictures(folder: Path) -> None:
    """Helpers find the manifest's folder no more, as on another machine."""
    if deal().number == 1:
        exists = Path.exists
        Path.exists = lambda self, **more: self != folder / "pictures" and exists(self, **more)  # type: ignore[method-assign]


def test_a_machine_without_the_pictures_decodes_none(tmp_path, manifest):
    run_led(lead_without_pictures, tmp_path, processes=3, cache=tmp_path / "cache")
    assert (np.load(tmp_path / "found.npy") == DecodedPixels(manifest, PX, "crop")[:]).all()
    _, counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts[1] == 0
    assert min(counts[0], counts[2]) > 20
