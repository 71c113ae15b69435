"""Converts the input of a served model to the bytes of a picture file; no input is trusted."""

import base64
import binascii
import io
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image, UnidentifiedImageError

READ_PATHS = "THAW_READ_PATHS"
# Pillow warns above this size. Larger pictures take hundreds of MiB to decode, even from a crafted file of a few KiB.
MOST_PIXELS = 89_478_485
# Formats of pictures that need no other program: Pillow would run Ghostscript on an EPS file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")

_FROM_URL_SAFE = str.maketrans("-_", "+/")
# A picture that is text, whose letters could be base64 too.
_PLAIN_PNM = re.compile(rb"P[1-3]\s")


def picture_bytes(given: Any) -> bytes:
    """The bytes of a picture file for `given`; ValueError or OSError, with the reason, if it is no picture.

    `given` is the bytes themselves, base64 text of them (plain or URL-safe, padded or not, with line breaks, or as a
    `data:` URL), a `Path`, or an array (height, width), (height, width, 1), or (height, width, 3 or 4) of uint8. Text
    is read as a path or a `file:` URI only if the environment variable THAW_READ_PATHS is "true": a request to a server
    is text, and must not make the server read its own files.
    """
    if isinstance(given, Path):
        content = given.read_bytes()
    elif isinstance(given, np.ndarray):
        content = _encoded(given)
    elif isinstance(given, str):
        content = _from_text(given)
    elif isinstance(given, bytes | bytearray | memoryview):
        content = _from_bytes(bytes(given))
    else:
        raise ValueError(f"it is of type {type(given).__name__}; give bytes, base64 text, a Path or an array")
    _check_size(content)
    return content


def _encoded(pixels: np.ndarray[Any, Any]) -> bytes:
    """The array as a lossless picture file."""
    if pixels.dtype != np.uint8:
        raise ValueError(f"it is an array of {pixels.dtype}; give uint8, from 0 to 255")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or 0 in pixels.shape:
        raise ValueError(f"it is an array of shape {pixels.shape}; give (height, width, 3) or (height, width)")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "TIFF")
    return file.getvalue()


def _from_text(text: str) -> bytes:
    if os.environ.get(READ_PATHS, "").lower() == "true":
        path = Path(unquote(urlsplit(text).path) if text.startswith("file:") else text)
        if len(text) < 4096 and path.is_file():
            return path.read_bytes()
    try:
        return _from_base64(text)
    except binascii.Error:
        raise ValueError(
            f"it is text that is no base64; a path is read if it is given as pathlib.Path, or if {READ_PATHS} is true"
        ) from None


def _from_bytes(content: bytes) -> bytes:
    """The bytes of a picture file; some of MLflow's request formats give base64 text as bytes."""
    if content.isascii() and not _PLAIN_PNM.match(content):
        try:
            return _from_base64(content.decode("ascii"))
        except binascii.Error:
            return content
    return content


def _from_base64(text: str) -> bytes:
    """The bytes; binascii.Error for other text."""
    text = "".join(text.split())
    if text[:5].lower() == "data:":
        text = unquote(text.partition(",")[2])
    text = text.rstrip("=").translate(_FROM_URL_SAFE)
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _check_size(content: bytes) -> None:
    """ValueError if the picture is too large; only the head of the file is read."""
    Image.init()
    try:
        with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as picture:
            pixels = picture.width * picture.height
    except UnidentifiedImageError:
        raise ValueError("it is in no format that is known") from None
    if pixels > MOST_PIXELS:
        raise ValueError(f"it has {pixels / 1e6:,.0f} million pixels, and {MOST_PIXELS / 1e6:.0f} million are taken")
