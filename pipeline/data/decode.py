"""Decodes one picture file to one square of uint8 pixels, in any mode, depth, orientation and shape."""

import importlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

from pipeline.data.deep import Ranges, grey_of, kind_of, scale_colours, strips

Pixels = npt.NDArray[np.uint8]
Fit: TypeAlias = Literal["crop", "pad", "squish"]
Decoder: TypeAlias = Literal["pillow", "nvjpeg"]

# Formats of pictures that Pillow decodes without another program: for EPS, for one, it would run one.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA", "ICO")
GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_EXIF_ORIENTATION, _TURNED_SIDEWAYS = 0x0112, (5, 6, 7, 8)

# Pillow's own limit: in colour this takes 683 MiB.
MOST_PIXELS = 178_956_970
# A JPEG of this size is decoded at an eighth of its sides, and takes less memory than the above.
MOST_PIXELS_OF_JPEG = 1_000_000_000
# Larger pictures are decoded one at a time, so that several threads do not hold several of them.
LARGE_PIXELS = 32_000_000
_one_large_at_a_time = threading.Lock()
# Deep pictures are scaled from what their files can hold.
NO_RANGES: Ranges = MappingProxyType[str, Any]({})


def decode_square(content: bytes, size_px: int, fit: Fit, grey: bool, ranges: Ranges = NO_RANGES) -> Pixels:
    """The picture in `content`, upright, resized to `size_px` × `size_px`, as (height, width, 1 or 3) uint8.

    `fit` is how it is made square: "crop" cuts the longer side at both ends, "pad" fills the shorter one with
    black, "squish" stretches. Transparent parts become white. Resizing is antialiased. Deep pictures are scaled from
    `ranges`. Raises OSError, ValueError or SyntaxError, as Pillow does, if `content` is not a complete picture.
    """
    # Twice the size, so that the loss of decoding a JPEG at a smaller scale is not visible after resizing.
    with loaded(content, 2 * size_px) as picture:
        scale_colours(picture, content, ranges)
        flat = to_grey_or_colour(upright(picture), grey, ranges)
        return np.asarray(_square(flat, size_px, fit)).reshape(size_px, size_px, 1 if grey else 3)


@contextmanager
def loaded(content: bytes, least_px: int) -> Iterator[Image.Image]:
    """The picture in `content` with its pixels decoded; its first frame if it has several.

    A JPEG is decoded at the smallest scale (1, 1/2, 1/4, 1/8) whose sides are no smaller than `least_px`. Raises
    OSError, ValueError or SyntaxError, as Pillow does, if it is not a complete picture or has too many pixels.
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
    """`picture` itself, turned by its EXIF orientation; as it is stored if that cannot be read."""
    with suppress(Exception):  # damaged EXIF raises many kinds of errors, and the pixels are complete
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def upright_size(content: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the picture in `content` at its full size, turned by its EXIF orientation."""
    with _opened(content) as picture:
        width, height = picture.size
        with suppress(Exception):  # as above
            # Pillow turns a TIFF itself, and gives its size after that.
            if picture.format != "TIFF" and picture.getexif().get(_EXIF_ORIENTATION) in _TURNED_SIDEWAYS:
                return height, width
    return width, height


def to_grey_or_colour(picture: Image.Image, grey: bool, ranges: Ranges = NO_RANGES) -> Image.Image:
    """`picture` in mode L or RGB, on white if it is transparent. Deep grey pictures are scaled from `ranges`."""
    mode = "L" if grey else "RGB"
    if kind_of(picture.mode):
        picture = grey_of(picture, ranges)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        return _on_white(picture, mode)
    return picture if picture.mode == mode else picture.convert(mode)


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
    """The FORMATS that can be decoded here; HEIC if the package for it is installed."""
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _on_white(picture: Image.Image, mode: str) -> Image.Image:
    flat = Image.new(mode, picture.size)
    for top, bottom in strips(*picture.size):
        coloured = picture.crop((0, top, picture.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        flat.paste(Image.alpha_composite(white, coloured).convert(mode), (0, top))
    return flat


def _square(picture: Image.Image, size_px: int, fit: Fit) -> Image.Image:
    size = (size_px, size_px)
    if fit == "squish":
        return picture.resize(size, Image.Resampling.BILINEAR)
    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    scale = size_px / max(picture.size)
    inner = picture.resize([max(round(side * scale), 1) for side in picture.size], Image.Resampling.BILINEAR)
    padded = Image.new(picture.mode, size)
    padded.paste(inner, ((size_px - inner.width) // 2, (size_px - inner.height) // 2))
    return padded
