import io
import sys
import threading
import zlib
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pipeline import picture_file
from pipeline.picture_file import loaded, upright_size


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
    monkeypatch.setattr(picture_file, "MOST_PIXELS", 2 * limit)
    content = file_of(Image.new("RGB", (320, 320), (200, 100, 50)), "JPEG")
    if limit == 100:
        assert error_of(content).startswith("it has too many pixels")
        return
    with loaded(content, 1) as picture:
        assert picture.size == (40, 40)
        assert np.abs(np.asarray(picture).astype(int) - (200, 100, 50)).max() <= 3


def test_a_progressive_jpeg_is_held_whole_and_so_has_the_limit_of_others(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(picture_file, "MOST_PIXELS", 20_000)
    content = file_of(Image.new("RGB", (320, 320)), "JPEG", progressive=True)
    assert error_of(content) == "it has too many pixels, 0 million; at most 0 million are decoded at once"


def test_a_jpeg_has_a_limit_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(picture_file, "MOST_PIXELS_OF_JPEG", 10_000)
    assert error_of(file_of(Image.new("RGB", (320, 320)), "JPEG")).startswith("it has too many pixels, 0 million")


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
    monkeypatch.setattr(picture_file, "LARGE_PIXELS", 100)
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


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)


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


def test_what_would_run_another_program_is_in_no_format_that_is_known():
    postscript = file_of(Image.new("RGB", (8, 8)), "EPS")
    assert error_of(postscript) == "it is in no format that is known"
