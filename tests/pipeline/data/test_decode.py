import io
import sys
import threading
import zlib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pipeline.data import decode as decoding
from pipeline.data import deep
from pipeline.data.decode import GREY_MODES, decode_square, loaded, to_grey_or_colour, upright_size

FITS = ["crop", "pad", "squish"]
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)


def file_of(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_black(width, height):
    """A PNG of a few kilobytes that is `width` × `height` black pixels."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def error_of(content):
    with pytest.raises(ValueError) as caught, loaded(content, 1):  # noqa: PT011
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("least_px", "wanted"), [(1, 100), (100, 100), (101, 200), (300, 400), (800, 800), (2000, 800)]
)
def test_a_jpeg_comes_at_the_smallest_scale_that_is_large_enough(least_px, wanted):
    with loaded(file_of(Image.new("RGB", (800, 800)), "JPEG"), least_px) as picture:
        assert picture.size == (wanted, wanted)


def test_other_formats_come_as_they_are():
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"):
        with loaded(file_of(Image.new("RGB", (80, 60)), kind), 1) as picture:
            assert picture.size == (80, 60), kind


def test_a_bomb_is_not_decoded():
    content = png_of_black(30_000, 30_000)
    assert len(content) < 200_000
    assert error_of(content).startswith("it has too many pixels")


def test_a_png_whose_side_is_twenty_thousand_pixels_is_decoded():
    with loaded(png_of_black(20_000, 500), 1) as picture:
        assert picture.size == (20_000, 500)


@pytest.mark.parametrize("limit", [100, 10_000])
def test_a_jpeg_of_more_pixels_than_pillow_opens_is_decoded_at_a_smaller_scale(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 2 * limit)
    content = file_of(Image.new("RGB", (320, 320), (200, 100, 50)), "JPEG")
    if limit == 100:
        assert error_of(content).startswith("it has too many pixels")
        return
    with loaded(content, 1) as picture:
        assert picture.size == (40, 40)
        assert np.abs(np.asarray(picture).astype(int) - (200, 100, 50)).max() <= 3


def test_a_progressive_jpeg_is_held_at_full_size_and_so_has_the_limit_of_other_formats(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(decoding, "MOST_PIXELS", 20_000)
    content = file_of(Image.new("RGB", (320, 320)), "JPEG", progressive=True)
    assert error_of(content) == "it has too many pixels, 0 million; at most 0 million are decoded at once"


def test_a_jpeg_has_a_limit_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(decoding, "MOST_PIXELS_OF_JPEG", 10_000)
    assert error_of(file_of(Image.new("RGB", (320, 320)), "JPEG")).startswith("it has too many pixels, 0 million")


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 100)
    content = file_of(Image.new("L", (20, 20)), "PNG")
    inside, most = [], []

    def work():
        with loaded(content, 1):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_heic_names_the_package_that_it_needs(without_heic):
    assert error_of(HEIC) == "it is HEIC, which needs a package: run 'pip install pillow-heif'"


def test_heic_is_decoded_where_the_package_is_installed(without_heic, monkeypatch):
    package = ModuleType("pillow_heif")

    class Opener(Image.Image):
        def __init__(self, file, name):
            super().__init__()
            self.__dict__.update(Image.new("RGB", (6, 4)).__dict__)

        def draft(self, mode, size):
            return None

    def register():
        Image.register_open("HEIF", Opener, lambda start: start[4:8] == b"ftyp")

    package.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert upright_size(HEIC) == (6, 4)


def test_a_format_that_would_run_another_program_is_not_known():
    postscript = file_of(Image.new("RGB", (8, 8)), "EPS")
    assert error_of(postscript) == "it is in no format that is known"


def decode(picture, size_px=8, fit="squish", grey=False, kind="PNG", **options):
    return decode_square(file_of(picture, kind, **options), size_px, fit, grey)


def flat(value, dtype, side=8):
    return Image.fromarray(np.full((side, side), value, dtype))


def bands(width, height, *colours, upright=False):
    """A picture of equal bands: side by side, or `upright` below one another."""
    picture = Image.new("RGB", (width, height))
    for number, colour in enumerate(colours):
        if upright:
            band = height // len(colours)
            picture.paste(colour, (0, number * band, width, (number + 1) * band))
        else:
            band = width // len(colours)
            picture.paste(colour, (number * band, 0, (number + 1) * band, height))
    return picture


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("I;16", "PNG"),
        ("I;16", "TIFF"),
        ("I", "TIFF"),
        ("F", "TIFF"),
    ],
)
def test_every_mode_and_shape_becomes_a_square_of_bytes(mode, kind, fit):
    for size in ((40, 30), (1, 1), (30, 41), (300, 2), (2, 300)):
        for grey in (False, True):
            square = decode(Image.new(mode, size), 7, fit, grey, kind)
            assert square.shape == (7, 7, 1 if grey else 3), size
            assert square.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (32768, np.uint16, 128),
        (65535, np.uint16, 255),
        (25700, np.uint16, 100),
        (0, np.uint16, 0),
        (32768, np.int32, 128),
        (100, np.uint8, 100),
        (0.5, np.float32, 128),
        (1.0, np.float32, 255),
        (0.0, np.float32, 0),
        (100.0, np.float32, 100),
        (-5.0, np.float32, 0),
        (70000.0, np.float32, 0),
        (-5, np.int32, 0),
        (70000, np.int32, 0),
        (np.nan, np.float32, 0),
        (np.inf, np.float32, 0),
    ],
)
def test_deep_pictures_are_scaled_to_bytes(value, dtype, wanted):
    for grey in (False, True):
        square = decode(flat(value, dtype), grey=grey, kind="TIFF")
        assert (square == wanted).all()


def test_a_sixteen_bit_png_is_scaled_to_bytes():
    ramp = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    assert (decode(ramp, 16, grey=True)[..., 0] == np.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_dark_sixteen_bit_picture_stays_dark(kind):
    assert (decode(flat(255, np.uint16), grey=True, kind=kind) == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_nan_or_infinite_is_black_and_leaves_the_others_as_they_are(value):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    whole = decode(Image.fromarray(ramp), grey=True, kind="TIFF")
    ramp[3, 5] = value
    holed = decode(Image.fromarray(ramp), grey=True, kind="TIFF")
    assert np.argwhere(holed != whole).tolist() == [[3, 5, 0]]
    assert holed[3, 5] == 0


@pytest.mark.parametrize(("low", "high"), [(0, 1_000_000), (-500, 500), (0, 65536)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_other_ranges_are_stretched_from_their_own_span(dtype, low, high):
    ramp = np.linspace(low, high, 64).reshape(8, 8).astype(dtype)
    values = decode(Image.fromarray(ramp), grey=True, kind="TIFF").ravel()
    assert (values[0], values[-1]) == (0, 255)
    assert (np.diff(values.astype(int)) > 0).all()
    assert abs(int(values[32]) - 128) <= 3


def test_a_picture_in_black_and_white_keeps_both():
    square = decode(bands(8, 8, BLACK, WHITE).convert("1"), grey=True)[..., 0]
    assert (square[:, :4] == 0).all()
    assert (square[:, 4:] == 255).all()


def test_a_palette_keeps_its_colours():
    square = decode(bands(8, 8, RED, BLUE).quantize(4))
    assert (square[0, 0] == RED).all()
    assert (square[0, -1] == BLUE).all()


@pytest.mark.parametrize(("kind", "off_by"), [("TIFF", 0), ("JPEG", 3)])
def test_the_four_inks_become_three_colours(kind, off_by):
    for ink, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK)):
        square = decode(Image.new("CMYK", (8, 8), ink), kind=kind).astype(int)
        assert np.abs(square - colour).max() <= off_by


def test_grey_in_colour_has_three_equal_channels():
    square = decode(Image.linear_gradient("L"), 16)
    assert (square == square[..., :1]).all()
    assert len(np.unique(square)) > 10


def test_colour_in_grey_is_its_brightness():
    square = decode(bands(9, 9, RED, GREEN, BLUE), 9, grey=True)[0, ::3, 0].astype(int)
    assert np.abs(square - [76, 150, 29]).max() <= 1


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(
    ("picture", "options"),
    [
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), {}),
        (Image.new("LA", (8, 8), (10, 0)), {}),
        (Image.new("RGB", (8, 8), (10, 20, 30)), {"transparency": (10, 20, 30)}),
        (Image.new("L", (8, 8), 10), {"transparency": 10}),
        (Image.new("P", (8, 8), 0), {"transparency": 0}),
    ],
    ids=["RGBA", "LA", "RGB with a transparent colour", "L with a transparent grey", "P with a transparent entry"],
)
def test_transparent_parts_turn_white(picture, options, grey):
    assert (decode(picture, grey=grey, **options) == 255).all()


def test_only_the_transparent_entry_of_a_palette_turns_white():
    picture = bands(8, 8, RED, BLUE).quantize(4)
    square = decode(picture, transparency=picture.getpixel((0, 0)))
    assert (square[0, 0] == WHITE).all()
    assert (square[0, -1] == BLUE).all()


def test_half_transparent_black_is_half_way_to_white():
    square = decode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))
    assert np.abs(square.astype(int) - 127).max() <= 1


def test_opaque_parts_keep_their_colour():
    assert (decode(Image.new("RGBA", (8, 8), (10, 20, 30, 255))) == (10, 20, 30)).all()


@pytest.mark.parametrize("upright", [False, True], ids=["wide", "tall"])
def test_crop_keeps_the_centre_of_the_longer_side(upright):
    size = (10, 30) if upright else (30, 10)
    square = decode(bands(*size, RED, GREEN, BLUE, upright=upright), 10, "crop")
    assert (square == GREEN).all()


@pytest.mark.parametrize("upright", [False, True], ids=["wide", "tall"])
def test_squish_keeps_all(upright):
    size = (10, 30) if upright else (30, 10)
    square = decode(bands(*size, RED, GREEN, BLUE, upright=upright), 9, "squish")
    middle = square[:, 4] if upright else square[4]
    assert (middle[[0, 4, 8]] == [RED, GREEN, BLUE]).all()


@pytest.mark.parametrize("grey", [False, True])
def test_pad_fills_both_ends_of_the_shorter_side_with_black(grey):
    wide = decode(Image.new("RGB", (40, 20), "white"), 16, "pad", grey)
    assert (wide[:4] == 0).all()
    assert (wide[4:12] == 255).all()
    assert (wide[12:] == 0).all()
    tall = decode(Image.new("RGB", (20, 40), "white"), 16, "pad", grey)
    assert (tall == wide.transpose(1, 0, 2)).all()


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_pad_keeps_a_line_of_a_picture_far_longer_than_it_is_wide(size):
    square = decode(Image.new("RGB", size, "white"), 16, "pad")
    line = square[:, 7] if size[0] == 1 else square[7]
    assert (line == 255).all()
    assert square.sum() == line.sum()


def test_a_square_picture_of_the_right_size_is_left_as_it_is():
    values = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for fit in FITS:
        assert (decode(Image.fromarray(values), 12, fit) == values).all()


def test_a_lone_pixel_fills_the_square():
    for fit in FITS:
        assert (decode(Image.new("RGB", (1, 1), (10, 20, 30)), 5, fit) == (10, 20, 30)).all()


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("fit", FITS)
def test_a_picture_that_the_camera_turned_ends_upright(orientation, undo, fit):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert (decode(stored, 8, fit, exif=exif) == decode(upright, 8, fit)).all()


def test_orientation_6_turns_a_jpeg_clockwise():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    square = decode(bands(640, 320, RED, BLUE), 16, kind="JPEG", exif=exif).astype(int)
    assert np.abs(square[:6] - RED).max() <= 6
    assert np.abs(square[10:] - BLUE).max() <= 6


def test_a_picture_whose_exif_is_damaged_stays_as_it_is_stored():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture = bands(16, 16, RED, BLUE)
    whole = file_of(picture, "WEBP", lossless=True, exif=exif)
    damaged = whole.replace(b"MM\0*", b"XX\0*")
    assert damaged != whole
    assert (decode_square(damaged, 16, "crop", False) == np.asarray(picture)).all()


def test_fine_detail_is_averaged_and_not_picked_from():
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    square = decode(Image.fromarray(board.astype(np.uint8)), 8, grey=True).astype(int)
    assert np.abs(square - 127).max() <= 2


@pytest.mark.parametrize("fit", FITS)
def test_a_large_jpeg_decoded_small_looks_like_it(fit):
    across = np.linspace(0, 255, 900)[None, :, None] * np.ones((500, 1, 3))
    across[..., 1] = np.linspace(255, 0, 500)[:, None]
    picture = Image.fromarray(across.astype(np.uint8))
    small = decode(picture, 32, fit, kind="JPEG", quality=95).astype(int)
    assert np.abs(small - decode(picture, 32, fit).astype(int)).mean() < 3


@pytest.mark.parametrize("content", [b"", b"no picture", file_of(Image.linear_gradient("L"), "PNG")[:-40]])
def test_an_incomplete_picture_raises_an_error(content):
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode_square(content, 8, "crop", False)


@pytest.mark.parametrize("mode", sorted(GREY_MODES - {"1", "La", "I;16L", "I;16N"}))
def test_a_grey_mode_loses_nothing_in_grey(mode):
    picture = Image.new(mode, (4, 4))
    colour = np.asarray(to_grey_or_colour(picture, grey=False))
    grey = np.asarray(to_grey_or_colour(picture, grey=True))
    assert (colour == grey[..., None]).all()


@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "PA", "I;16", "I", "F", "P with a transparent entry", "F of a wide range"]
)
def test_work_on_strips_gives_the_same_as_work_on_the_whole_picture(mode, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (23, 11, 4), dtype=np.uint8)
    dtypes = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    picture = Image.fromarray(values)
    if mode.startswith("P "):
        picture = picture.convert("RGB").quantize(16)
        picture.info["transparency"] = 3
    elif mode.startswith("F "):
        picture = Image.fromarray(values[..., 0].astype(np.float32) * 1e4)
    elif mode in dtypes:
        picture = Image.fromarray(values[..., 0].astype(dtypes[mode]))
    elif mode == "PA":
        picture = picture.convert("RGB").quantize(16).convert("PA")
    else:
        picture = picture.convert(mode)
    for grey in (False, True):
        whole = np.asarray(to_grey_or_colour(picture.copy(), grey))
        with monkeypatch.context() as patched:
            patched.setattr(deep, "PIXELS_AT_ONCE", 30)
            assert (np.asarray(to_grey_or_colour(picture.copy(), grey)) == whole).all()
