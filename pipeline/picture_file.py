"""The bytes of a picture file opened with bounded memory, whatever they turn out to be."""

import importlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache

from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

# Of what Pillow knows, the formats that hold pictures and need no other program: EPS, for one, would be run.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA", "ICO")
# As many as Pillow itself takes: so many pixels in colour are 683 MiB.
MOST_PIXELS = 178_956_970
# A JPEG is decoded at an eighth of its sides, so that one of so many takes less memory than the above.
MOST_PIXELS_OF_JPEG = 1_000_000_000
# Pictures larger than this are decoded one at a time, so that several threads do not hold several of them.
LARGE_PIXELS = 32_000_000
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_EXIF_ORIENTATION, _TURNED_SIDEWAYS = 0x0112, (5, 6, 7, 8)

_one_large_at_a_time = threading.Lock()


@contextmanager
def loaded(content: bytes, least_px: int) -> Iterator[Image.Image]:
    """The picture in `content`, its pixels decoded, its first frame where it has more.

    A JPEG comes at the smallest of its scales (1, 1/2, 1/4, 1/8) whose sides are no smaller than `least_px`. Raises
    OSError, ValueError or SyntaxError, as Pillow does, if it is no whole picture or has too many pixels.
    """
    with _opened(content) as picture:
        full = picture.width * picture.height
        picture.draft(None, (least_px, least_px))
        pixels = picture.width * picture.height
        # All coefficients of a progressive JPEG are held at its full size.
        if pixels > MOST_PIXELS or (full > MOST_PIXELS and "progressive" in picture.info):
            raise ValueError(_too_large(full))
        with _one_large_at_a_time if max(pixels, full // 8) > LARGE_PIXELS else nullcontext():
            picture.load()
            yield picture


def upright(picture: Image.Image) -> Image.Image:
    """`picture` itself, turned as its EXIF says; as it is stored where that cannot be read."""
    with suppress(Exception):  # damaged EXIF fails in many ways, and the pixels are whole
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def upright_size(content: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the picture in `content` at its full size, turned as its EXIF says."""
    with _opened(content) as picture:
        width, height = picture.size
        with suppress(Exception):  # as above
            # Pillow turns a TIFF itself, and says the size that it has then.
            if picture.format != "TIFF" and picture.getexif().get(_EXIF_ORIENTATION) in _TURNED_SIDEWAYS:
                return height, width
    return width, height


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_formats())
    except Image.DecompressionBombError:
        return _open_large(content)
    except UnidentifiedImageError:
        raise ValueError(_unknown(content)) from None


def _open_large(content: bytes) -> Image.Image:
    """A JPEG of more pixels than Pillow opens by itself, which can be decoded at a smaller scale."""
    if not content.startswith(b"\xff\xd8"):
        raise ValueError(_too_large(None))
    picture = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
    if picture.width * picture.height > MOST_PIXELS_OF_JPEG:
        raise ValueError(_too_large(picture.width * picture.height))
    return picture


def _too_large(pixels: int | None) -> str:
    count = "" if pixels is None else f", {pixels / 1e6:,.0f} million"
    return f"it has too many pixels{count}; at most {MOST_PIXELS / 1e6:,.0f} million are decoded at once"


def _unknown(content: bytes) -> str:
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS and "HEIF" not in _formats():
        return "it is HEIC, which needs a package: run 'pip install pillow-heif'"
    return "it is in no format that is known"


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that can be decoded here; HEIC where the package for it is installed."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
