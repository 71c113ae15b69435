"""One picture file to one square of uint8 pixels, whatever its mode, depth, turn and shape."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipeline.picture_file import loaded, upright

Pixels = npt.NDArray[np.uint8]
Fit: TypeAlias = Literal["crop", "pad", "squish"]
Decoder: TypeAlias = Literal["pillow", "nvjpeg"]

GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
# What takes many bytes a pixel is done for so many at a time.
PIXELS_AT_ONCE = 4_000_000


def decode_square(content: bytes, size_px: int, fit: Fit, grey: bool) -> Pixels:
    """The picture in `content`, upright, resized to `size_px` × `size_px`, as (height, width, 1 or 3) uint8.

    `fit` is how it is made square: "crop" cuts the longer side at both ends, "pad" fills the shorter one with
    black, "squish" stretches. Transparent parts come out white. Resizing is antialiased. Raises OSError,
    ValueError or SyntaxError, as Pillow does, if `content` is no whole picture.
    """
    # Twice the size, so that what is lost by decoding a JPEG at a smaller scale is not seen after resizing.
    with loaded(content, 2 * size_px) as picture:
        flat = to_grey_or_colour(upright(picture), grey)
        return np.asarray(_square(flat, size_px, fit)).reshape(size_px, size_px, 1 if grey else 3)


def to_grey_or_colour(picture: Image.Image, grey: bool) -> Image.Image:
    """`picture` in mode L or RGB, on white where it is transparent. Deep pictures are scaled from their full range to
    8 bits."""
    mode = "L" if grey else "RGB"
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        return _on_white(picture, mode)
    return picture if picture.mode == mode else picture.convert(mode)


def _on_white(picture: Image.Image, mode: str) -> Image.Image:
    flat = Image.new(mode, picture.size)
    for top, bottom in _strips(*picture.size):
        coloured = picture.crop((0, top, picture.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        flat.paste(Image.alpha_composite(white, coloured).convert(mode), (0, top))
    return flat


def _to_eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """16 bits by their full range, and wider integers where they fit it; floats by the range that they fit, 0 to 1
    or 0 to 255; whatever lies outside by its own span. What is no number comes out black."""
    strips = [slice(*rows) for rows in _strips(values.shape[1], values.shape[0])]
    spans = [(numbers.min(), numbers.max()) for numbers in (_numbers(values[rows]) for rows in strips)]
    least, most = min(float(low) for low, _ in spans), max(float(high) for _, high in spans)
    low, high = 0.0, 65535.0
    if values.dtype.kind == "f":
        high = next((limit for limit in (1.0, 255.0) if most <= limit), high)
    if least < low or most > high:
        low, high = least, most
    bytes_ = np.zeros(values.shape, dtype=np.uint8)
    for rows in strips if high > low else ():
        bytes_[rows] = ((_numbers(values[rows]) - low) * (255 / (high - low))).round()
    return bytes_


def _numbers(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)


def _strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of strips of at most PIXELS_AT_ONCE, or of one row."""
    rows = max(PIXELS_AT_ONCE // max(width, 1), 1)
    yield from ((top, min(top + rows, height)) for top in range(0, height, rows))


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
