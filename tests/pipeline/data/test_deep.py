"""Deep pictures: they are scaled to 8 bits from the range of the training pictures."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data import deep
from pipeline.data.decode import decode_square
from pipeline.data.deep import Span, choose_ranges, describe_ranges, grey_of, kind_of, measure, mode_of, span_of_set
from pipeline.data.manifest import build_manifest, describe_manifest, load_manifest, save_manifest
from pipeline.data.readers.listing import Listing
from pipeline.data.stored_pixels import open_pixels

SIDE = 16
CONTAINER = {}


def file_of(picture, kind="TIFF", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def png_of(values):
    """A 16-bit PNG of (height, width, channels): grey, grey with transparency, colour, or colour with transparency."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_of(values, order="<", compressed=False):
    """A 16-bit colour TIFF of (height, width, 3) in one strip."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 8 + len(pixels)),
            (259, 3, 1, 8 if compressed else 1), (262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, channels),
            (278, 3, 1, height), (279, 4, 1, len(pixels))]  # fmt: skip
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        inline = kind == 3 and count == 1
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(f"{order}HH", value, 0) if inline else struct.pack(f"{order}I", value)
    head = b"II*\0" if order == "<" else b"MM\0*"
    start = 8 + len(pixels) + len(bits)
    return head + struct.pack(f"{order}I", start) + pixels + bits + directory + bytes(4)


def ramp(low, high, dtype):
    return np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE).astype(dtype)


def colours(low=1942, high=2052):
    grey = ramp(low, high, np.uint16)
    return np.stack([grey, grey[::-1], grey.T], axis=-1)


def scaled(values, low, high):
    return ((values.astype(float) - low) * 255 / (high - low)).round().clip(0, 255).astype(np.uint8)


def spans_of(*contents):
    spans = []
    for content in contents:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            spans.append(measure(picture, content))
    return spans


@pytest.mark.parametrize(
    ("kind", "dtype", "low", "high"),
    [
        ("PNG", np.uint16, 1942, 2052),
        ("TIFF", np.uint16, 1942, 2052),
        ("TIFF", np.int32, -120_000, 90_000),
        ("TIFF", np.int32, 0, 2_000_000_000),
        ("TIFF", np.float32, 0.001, 0.004),
        ("TIFF", np.float32, -3e5, 4e5),
        ("PPM", np.uint16, 300, 900),
    ],
)
@pytest.mark.parametrize("grey", [True, False])
def test_a_deep_grey_picture_is_scaled_from_the_range_it_is_given(kind, dtype, low, high, grey):
    values = ramp(low, high, dtype)
    found = decode_square(file_of(Image.fromarray(values), kind), SIDE, "squish", grey, {"integer": [low, high]} if
                          dtype != np.float32 else {"float": [low, high]})  # fmt: skip
    assert len(np.unique(found)) > 90
    assert np.abs(found - scaled(values, low, high)[..., None].astype(int)).max() <= 1


def test_numbers_outside_the_range_are_black_and_white_and_so_are_those_that_are_none():
    values = np.array([[5, 10, 20, 25], [np.nan, np.inf, -np.inf, 15]], dtype=np.float32)
    found = decode_square(file_of(Image.fromarray(values)), 4, "squish", True, {"float": [10.0, 20.0]})[..., 0]
    assert found[0].tolist() == [0, 0, 255, 255]
    assert found[-1].tolist() == [0, 0, 0, 128]


@pytest.mark.parametrize("make", [png_of, tiff_of, lambda v: tiff_of(v, ">"), lambda v: tiff_of(v, compressed=True)])
def test_colours_of_16_bits_keep_their_low_bytes(make):
    values = colours()
    content = make(values)
    assert kind_of("RGB;16") == "integer"
    (span,) = spans_of(content)
    assert (span.low, span.high) == (1942, 2052) or (span.low > 1940 and span.high < 2053)
    found = decode_square(content, SIDE, "squish", False, {"integer": [1942, 2052]})
    assert (found == scaled(values, 1942, 2052)).all()
    plain = decode_square(content, SIDE, "squish", False, CONTAINER)
    assert (plain == values >> 8).all()


def test_transparency_of_a_16_bit_picture_stays():
    values = colours()
    clear = np.full((SIDE, SIDE, 1), 65535, np.uint16)
    clear[:4] = 0
    for content, wanted in (
        (png_of(np.concatenate([values, clear], axis=-1)), scaled(values, 1942, 2052)),
        (png_of(np.concatenate([values[..., :1], clear], axis=-1)), scaled(values[..., [0, 0, 0]], 1942, 2052)),
    ):
        found = decode_square(content, SIDE, "squish", False, {"integer": [1942, 2052]})
        assert (found[:4] == 255).all()
        assert (found[4:] == wanted[4:]).all()


def test_a_turned_16_bit_picture_ends_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = colours()
    upright = decode_square(png_of(values), SIDE, "squish", False, {"integer": [1942, 2052]})
    tag = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(tag).to_bytes(4, "big") + b"eXIf" + tag + zlib.crc32(b"eXIf" + tag).to_bytes(4, "big")
    turned = png_of(values).replace(b"\0\0\0\0IEND", chunk + b"\0\0\0\0IEND")
    found = decode_square(turned, SIDE, "squish", False, {"integer": [1942, 2052]})
    assert (found == np.rot90(upright, -1)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_of_8_bits_is_neither_measured_nor_changed(kind, mode):
    values = np.random.default_rng(0).integers(90, 110, (SIDE, SIDE, 3), dtype=np.uint8)
    content = file_of(Image.fromarray(values).convert(mode), kind)
    assert spans_of(content) == [None]
    ranges = {"integer": [90, 110], "float": [90, 110]}
    for grey in (True, False):
        assert (decode_square(content, SIDE, "crop", grey, ranges) == decode_square(content, SIDE, "crop", grey)).all()
    with Image.open(io.BytesIO(content)) as picture:
        assert mode_of(picture, content) == mode


def test_hot_and_dead_pixels_are_no_part_of_a_range():
    values = ramp(1942, 2052, np.uint16)
    values[3, 3], values[4, 4] = 65535, 0
    (span,) = spans_of(file_of(Image.fromarray(values)))
    assert 1940 < span.low < 1946
    assert 2048 < span.high < 2053
    holes = ramp(0.2, 0.4, np.float32)
    holes[0, :3] = np.nan, np.inf, -np.inf
    (span,) = spans_of(file_of(Image.fromarray(holes)))
    assert 0.2 <= span.low < span.high <= 0.4
    assert spans_of(file_of(Image.fromarray(np.full((4, 4), np.nan, np.float32)))) == [None]


def test_one_odd_picture_of_many_is_no_part_of_a_range_and_a_class_of_few_is():
    usual, odd, bright = Span(100, 110, 190, 200), Span(60_000, 60_000, 65_535, 65_535), Span(100, 110, 800, 900)
    assert span_of_set([usual] * 9 + [odd]) == usual
    assert span_of_set([usual] * 99 + [bright] * 3).high == 900
    assert span_of_set([usual, odd]) == Span(100, 110, 65_535, 65_535)


def test_the_recipe_chooses_the_ranges():
    spans = {"integer": Span(1942, 1950, 2040, 2052), "float": Span(3, 3, 3, 3)}
    assert choose_ranges("auto", spans) == {"integer": [1942, 2052]}, "one number alone is no range"
    assert choose_ranges("container", spans) == {}
    assert choose_ranges([0, 4095], {}) == {"integer": [0, 4095], "float": [0, 4095]}


def test_pictures_that_use_a_small_part_of_their_range_are_told_of():
    spans = {"integer": Span(1942, 1950, 2040, 2052)}
    assert describe_ranges(choose_ranges("auto", spans), spans) == [
        "  deep pictures (integer): 1942 to 2052 become black to white"
    ]
    first, second = describe_ranges({}, spans)
    assert "0 to 65535 become black to white" in first
    assert "98 % of the training pixels, 1950 to 2040, use less than a 16th of that" in second
    assert "set data.range to auto or [1950, 2040]" in second
    labelled = {"integer": Span(1942, 1950, 2040, 65535)}
    assert "set data.range to [1950, 2040]" in describe_ranges(choose_ranges("auto", labelled), labelled)[1]
    assert len(describe_ranges({"integer": [0, 100]}, spans)) == 2, "a range beside the numbers"
    assert describe_ranges({}, {"float": Span(0, 0.1, 0.9, 1)}) == [
        "  deep pictures (float): 0 to 1 become black to white"
    ]
    assert describe_ranges({}, {}) == []


@pytest.fixture
def listing(tmp_path):
    """Two classes of 12-bit pictures; those of the test are far brighter."""
    rows = []
    for number in range(12):
        split = "test" if number % 3 == 2 else "valid" if number % 3 == 1 else "train"
        values = ramp(1942, 2052, np.uint16) + number + (9000 if split == "test" else 0)
        name = f"{number}.{'png' if number < 6 else 'tif'}"
        Image.fromarray(values.T if number % 2 else values).save(tmp_path / name)
        rows.append((name, "vertical" if number % 2 else "horizontal", split))
    paths, labels, splits = (list(column) for column in zip(*rows, strict=True))
    return Listing("deep", tmp_path, paths, labels, splits)


def manifest_of(listing, range_="auto"):
    return build_manifest(listing, 0.2, 0.2, 0.0, 0, "move", range_)


def test_the_range_is_that_of_the_training_pictures_and_is_kept_in_the_manifest(listing, tmp_path):
    manifest = manifest_of(listing)
    low, high = manifest.ranges["integer"]
    assert 1942 <= low < 1950
    assert 2052 <= high < 2063
    assert "become black to white" in describe_manifest(manifest)
    save_manifest(manifest, tmp_path / "saved")
    loaded = load_manifest(tmp_path / "saved")
    assert (loaded.ranges, loaded.spans) == (manifest.ranges, manifest.spans)
    assert manifest_of(listing, [0, 4095]).ranges["integer"] == [0, 4095]
    assert manifest_of(listing, "container").ranges == {}
    pd.testing.assert_frame_equal(manifest_of(listing, "container").table, manifest.table)


@pytest.mark.parametrize("max_store_gib", [20, 0], ids=["stored", "streamed"])
def test_pixels_are_scaled_by_the_range_of_their_manifest_and_stored_by_it(listing, max_store_gib):
    by_range = {
        str(choice): open_pixels(manifest_of(listing, choice), SIDE, "crop", max_store_gib)[np.arange(12)]
        for choice in ("auto", "container", [1900, 2100])
    }
    auto, container, given = by_range.values()
    train = manifest_of(listing).rows("train")
    assert np.ptp(auto[train]) == 255
    assert np.ptp(container[train]) <= 1
    assert 120 < np.ptp(given[train]) < 180
    assert (auto[manifest_of(listing).rows("test")] == 255).all(), "brighter than all that training has seen"


def test_a_picture_is_scaled_by_its_container_strip_by_strip_and_not_in_eight_bytes_a_pixel(monkeypatch):
    monkeypatch.setattr(deep, "PIXELS_AT_ONCE", 10_000)
    picture = Image.fromarray(np.full((1000, 1000), 300, dtype=np.uint16))
    tracemalloc.start()
    grey_of(picture, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_500_000  # its own 2 MB, once more as an array, and 1 MB of grey
