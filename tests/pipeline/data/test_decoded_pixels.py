"""Here the CPU does the work of a GPU: torchvision decodes JPEGs on both."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data import decoded_pixels
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.system.errors import UserError

COUNT = 11


@pytest.fixture
def manifest(tmp_path):
    """JPEGs of many sizes, every third of which is left to Pillow, each of a brightness of its own."""
    for row in range(COUNT):
        folder = tmp_path / "photos" / ("cat" if row < 6 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        mode = "CMYK" if row % 3 == 1 else "RGB"
        Image.new("RGB", (20 + row, 16), (20 * row,) * 3).convert(mode).save(folder / f"{row:02d}.jpg", quality=95)
    return build_manifest(list_source(str(tmp_path / "photos"), [".jpg"]), 0.2, 0.2, 0.0, 0)


@pytest.mark.parametrize("rows", [slice(None), [7, 0, 7, 10], [4], [0], np.arange(0), 3], ids=str)
def test_pictures_decoded_by_a_gpu_and_by_pillow_come_in_the_order_they_are_asked_for(manifest, rows):
    squares = DecodedPixels(manifest, 8, "crop", "nvjpeg")[rows]
    expected = DecodedPixels(manifest, 8, "crop")[rows]
    assert squares.shape == expected.shape
    assert np.abs(squares.astype(int) - expected).max(initial=0) <= 2


@pytest.mark.parametrize("decoder", ["pillow", "nvjpeg"])
@pytest.mark.parametrize("first", [0, 5, COUNT])
def test_blocks_hold_all_rows_from_the_first_on_in_order(manifest, monkeypatch, decoder, first):
    monkeypatch.setattr(decoded_pixels, "ROWS_OF_A_GPU", 4)
    pixels = DecodedPixels(manifest, 8, "crop", decoder)
    blocks, size = pixels.blocks(first)
    found = list(blocks)
    assert all(len(block) <= size for block in found)
    assert (np.concatenate([pixels[:0], *found]) == pixels[first:]).all()


def test_a_picture_that_changed_is_named_where_a_gpu_decodes(manifest):
    pixels = DecodedPixels(manifest, 8, "crop", "nvjpeg")
    Image.new("RGB", (20, 12), "white").save(manifest.paths[8])
    assert len(pixels[[7, 9]]) == 2
    with pytest.raises(UserError, match=r"08\.jpg is not what it was \(its content has changed\); run precompute"):
        pixels[:]
    manifest.paths[2].unlink()
    with pytest.raises(UserError, match=r"02\.jpg is not what it was .*No such file"):
        pixels[:4]


def test_a_file_that_comes_in_pieces_is_read_whole(tmp_path, monkeypatch):
    content = bytes(range(256)) * 5
    (tmp_path / "file").write_bytes(content)
    readv = decoded_pixels.os.readv
    monkeypatch.setattr(decoded_pixels.os, "readv", lambda file, buffers: readv(file, [buffers[0][:100]]))
    assert decoded_pixels._read_file(str(tmp_path / "file")) == content
