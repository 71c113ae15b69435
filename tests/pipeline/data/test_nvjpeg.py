"""Headers, turning and resizing are tested on a CPU; the GPU's decoder needs a GPU."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import data

from pipeline.data import nvjpeg
from pipeline.data.decode import Fit, decode_square
from pipeline.data.nvjpeg import (
    PIXELS_AT_ONCE,
    Header,
    _bounded,
    _upright,
    choose_decoder,
    decode_squares,
    read_header,
    to_squares,
)
from pipeline.system.errors import UserError

PHOTO = Image.fromarray(data.astronaut()).crop((0, 0, 300, 200))
EIGHT = range(1, 9)


def jpeg(picture: Image.Image = PHOTO, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif, quality=95, **options)
    return file.getvalue()


def with_headers(contents: list[bytes]) -> list[tuple[bytearray, Header]]:
    return [(bytearray(content), header) for content in contents if (header := read_header(content))]


@pytest.mark.parametrize("orientation", EIGHT)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_header_has_the_sides_as_they_are_stored_and_the_orientation(orientation: int, progressive: bool) -> None:
    assert read_header(jpeg(orientation=orientation, progressive=progressive)) == Header(200, 300, orientation)


def test_a_grey_jpeg_and_one_without_exif_are_taken() -> None:
    file = io.BytesIO()
    PHOTO.convert("L").save(file, "JPEG")
    assert read_header(file.getvalue()) == Header(200, 300, 1)


def test_what_a_gpu_would_decode_otherwise_is_left_to_pillow() -> None:
    file = io.BytesIO()
    PHOTO.save(file, "PNG")
    assert read_header(file.getvalue()) is None
    assert read_header(jpeg(PHOTO.convert("CMYK"))) is None
    assert read_header(jpeg(keep_rgb=True)) is None
    assert read_header(jpeg()[:20]) is None
    assert read_header(b"") is None


def test_damaged_exif_leaves_a_picture_as_it_is_stored() -> None:
    content = jpeg(orientation=6)
    start = content.index(b"Exif\0\0") + 6
    assert read_header(content[:start] + b"\xff" * 8 + content[start + 8 :]) == Header(200, 300, 1)


@pytest.mark.parametrize("orientation", EIGHT)
def test_pictures_are_turned_as_pillow_turns_them(orientation: int) -> None:
    stored = Image.open(io.BytesIO(jpeg(orientation=orientation)))
    tensor = torch.from_numpy(np.array(stored)).permute(2, 0, 1)[None]
    expected = np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(_upright(tensor, orientation)[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("fit", ["crop", "pad", "squish"])
@pytest.mark.parametrize("size_px", [64, 150, 260])
def test_squares_are_pillows_but_for_rounding(fit: Fit, size_px: int) -> None:
    file = io.BytesIO()
    PHOTO.save(file, "PNG")
    expected = decode_square(file.getvalue(), size_px, fit, False).astype(int)
    tensor = torch.from_numpy(np.array(PHOTO)).permute(2, 0, 1)
    found = to_squares([tensor], [1], size_px, fit)[0].permute(1, 2, 0).numpy().astype(int)
    assert found.shape == expected.shape
    # At the rim of a crop Pillow sees what lies beyond it.
    inner = slice(1, -1) if fit == "crop" and size_px < 200 else slice(2, -2) if fit == "crop" else slice(None)
    assert np.abs(found - expected)[inner, inner].max() <= 2


@pytest.mark.parametrize("fit", ["crop", "pad", "squish"])
@pytest.mark.parametrize("grey", [False, True])
def test_pictures_of_many_sizes_and_turns_come_in_order_each_as_it_would_alone(fit: Fit, grey: bool) -> None:
    sizes = [(64, 48), (64, 64), (30, 90), (64, 48), (90, 30), (64, 64), (33, 47)]
    # The second seven are alike the first, with which they are resized.
    contents = [jpeg(PHOTO.resize(size), 2 + index) for index, size in enumerate(sizes)] * 2
    contents[9] = jpeg(PHOTO.resize((30, 90)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), 4)
    jpegs = with_headers(contents)
    together = decode_squares(jpegs, 64, fit, grey, torch.device("cpu"))
    assert together.shape == (14, 64, 64, 1 if grey else 3)
    for square, one, content in zip(together, jpegs, contents, strict=True):
        assert torch.equal(square, decode_squares([one], 64, fit, grey, torch.device("cpu"))[0])
        assert np.abs(square.numpy() - decode_square(content, 64, fit, grey).astype(int)).mean() < 3


def test_what_is_decoded_in_several_goes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs = with_headers([jpeg(PHOTO.resize((60 + side, 50))) for side in range(7)])
    expected = decode_squares(jpegs, 32, "crop", False, torch.device("cpu"))
    monkeypatch.setattr(nvjpeg, "PIXELS_AT_ONCE", 7_000)
    assert torch.equal(decode_squares(jpegs, 32, "crop", False, torch.device("cpu")), expected)


def test_no_more_is_decoded_at_once_than_memory_allows() -> None:
    large = Header(5_000, 6_000, 1)
    chunks = list(_bounded([large] * 9, 224))
    assert [index for chunk in chunks for index in chunk] == list(range(9))
    assert max(len(chunk) for chunk in chunks) * 30_000_000 <= PIXELS_AT_ONCE


def test_nor_as_small_pictures_are_made_larger() -> None:
    assert max(len(chunk) for chunk in _bounded([Header(200, 300, 1)] * 300, 1024)) * 1024**2 <= PIXELS_AT_ONCE


def test_a_cpu_has_only_pillow() -> None:
    cpu = torch.device("cpu")
    assert choose_decoder("auto", cpu) == choose_decoder("pillow", cpu) == "pillow"
    with pytest.raises(UserError, match=r"data\.decoder is nvjpeg, but torch decodes no JPEG on a GPU here"):
        choose_decoder("nvjpeg", cpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("grey", [False, True])
def test_a_gpu_gives_what_pillow_gives_but_for_rounding(grey: bool) -> None:
    contents = [jpeg(orientation=orientation) for orientation in EIGHT]
    found = decode_squares(with_headers(contents), 64, "crop", grey, torch.device("cuda")).cpu().numpy().astype(int)
    expected = np.stack([decode_square(content, 64, "crop", grey) for content in contents]).astype(int)
    assert np.abs(found - expected).mean() < 2
