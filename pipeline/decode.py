"""One picture file to one square of uint8 pixels, whatever its mode, depth, turn and shape."""

import io
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]
Fit: TypeAlias = Literal["crop", "pad", "squish"]

GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}


def decode_square(content: bytes, size_px: int, fit: Fit, grey: bool) -> Pixels:
    """The picture in `content`, upright, resized to `size_px` × `size_px`, as (height, width, 1 or 3) uint8.

    `fit` is how it is made square: "crop" cuts the longer side at both ends, "pad" fills the shorter one with
    black, "squish" stretches. Transparent parts come out white. Resizing is antialiased. Raises OSError,
    ValueError or SyntaxError, as Pillow does, if `content` is no whole picture.
    """
    with Image.open(io.BytesIO(content)) as opened:
        # A JPEG is decoded at the smallest of its scales that is no smaller than what is asked for.
        opened.draft(None, (2 * size_px, 2 * size_px))
        opened.load()
        picture = to_grey_or_colour(upright(opened), grey)
    return np.asarray(_square(picture, size_px, fit)).reshape(size_px, size_px, 1 if grey else 3)


def upright(picture: Image.Image) -> Image.Image:
    """`picture` turned as its EXIF says; as it is stored where that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF fails in many ways, and the pixels are whole
        return picture


def to_grey_or_colour(picture: Image.Image, grey: bool) -> Image.Image:
    """`picture` in mode L or RGB. Deep pictures are scaled from their full range to 8 bits."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        picture = Image.alpha_composite(white, coloured)
    return picture.convert("L" if grey else "RGB")


def _to_eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """16 bits by their full range, and wider integers where they fit it; floats by the range that they fit, 0 to 1
    or 0 to 255; whatever lies outside by its own span. What is no number comes out black."""
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = 0.0, 65535.0
    if values.dtype.kind == "f":
        high = next((most for most in (1.0, 255.0) if numbers.max() <= most), high)
    if numbers.min() < low or numbers.max() > high:
        low, high = float(numbers.min()), float(numbers.max())
    if high == low:
        return np.zeros(numbers.shape, dtype=np.uint8)
    return ((numbers - low) * (255 / (high - low))).round().astype(np.uint8)


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
