"""Decodes, turns and resizes JPEGs on a GPU, many at a time.

The pixels differ a little from Pillow's, which decodes and rounds in other ways. JPEGs that a GPU would decode into
other colours are recognized by their headers, and left to Pillow.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from pipeline.data.decode import Decoder, Fit
from pipeline.system.device import to_device
from pipeline.system.errors import UserError

# What a recipe may ask for.
Choice: TypeAlias = Literal["auto"] | Decoder

# Pixels decoded at once, which bounds memory: 400 MB as colour bytes, and four times that while they are resized.
PIXELS_AT_ONCE = 128_000_000
# Larger JPEGs are left to Pillow.
MOST_PIXELS = 32_000_000
_START_OF_FRAME = {0xC0, 0xC1, 0xC2}
_START_OF_SCAN, _EXIF_SEGMENT, _ADOBE_SEGMENT, _ORIENTATION = 0xDA, 0xE1, 0xEE, 0x0112
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Header:
    """A JPEG's header: its sides as they are stored, in pixels, and its EXIF orientation, 1 to 8."""

    height: int
    width: int
    orientation: int


def choose_decoder(choice: Choice, device: torch.device) -> Decoder:
    """The decoder for "auto", "pillow" or "nvjpeg" on `device`; UserError if it is not available there."""
    can = device.type == "cuda" and _can_decode(device)
    if choice == "nvjpeg" and not can:
        raise UserError("data.decoder is nvjpeg, but torch decodes no JPEG on a GPU here; set it to auto or pillow.")
    if choice == "auto":
        return "nvjpeg" if can else "pillow"
    return choice


@cache
def _can_decode(device: torch.device) -> bool:
    try:
        decode_jpeg([encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))], device=device)
    except RuntimeError:  # torchvision was built without it
        return False
    return True


def read_header(content: bytes | bytearray) -> Header | None:
    """The header of a JPEG that a GPU decodes as Pillow does: 8 bits, grey or YCbCr, of at most MOST_PIXELS. None for
    CMYK, RGB and other JPEGs, and for all other files."""
    orientation = 1
    for marker, segment in _segments(content):
        if marker == _EXIF_SEGMENT and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment)
        if marker == _ADOBE_SEGMENT and segment.startswith(b"Adobe") and segment[11:12] != b"\1":
            return None  # its colours are not YCbCr
        if marker in _START_OF_FRAME:
            height, width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
            is_usual = segment[0] == 8 and segment[5] in (1, 3) and 0 < height * width <= MOST_PIXELS
            is_usual = is_usual and segment[6::3][:3] != b"RGB"
            return Header(height, width, orientation) if is_usual else None
    return None


def decode_squares(
    jpegs: Sequence[tuple[bytearray, Header]], size_px: int, fit: Fit, grey: bool, device: torch.device
) -> Tensor:
    """JPEGs, each with its header, as squares (N, size, size, 1 or 3) of uint8 in the GPU's memory, the same as those
    of `decode_square` but for rounding. The GPU has finished when this returns."""
    mode = ImageReadMode.GRAY if grey else ImageReadMode.RGB
    squares = torch.empty((len(jpegs), size_px, size_px, 1 if grey else 3), dtype=torch.uint8, device=device)
    for chosen in _bounded([header for _, header in jpegs], size_px):
        encoded = [torch.frombuffer(jpegs[index][0], dtype=torch.uint8) for index in chosen]
        orientations = [jpegs[index][1].orientation for index in chosen]
        with _in_turn(device):
            decoded = decode_jpeg(encoded, mode=mode, device=device)
            squares[chosen[0] : chosen[-1] + 1] = to_squares(decoded, orientations, size_px, fit).permute(0, 2, 3, 1)
    return squares


def to_squares(images: Sequence[Tensor], orientations: Sequence[int], size_px: int, fit: Fit) -> Tensor:
    """Images (channels, height, width) of uint8, each turned by its EXIF orientation and made square, as (N, channels,
    size, size) of uint8."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        alike[(orientations[index], *image.shape)].append(index)
    resized = [
        _resized(_upright(torch.stack([images[index] for index in indices]), orientation), size_px, fit)
        for (orientation, *_), indices in alike.items()
    ]
    # All at once: starting a kernel for each would take longer than the work itself.
    squares = (resized[0] if len(resized) == 1 else torch.cat(resized)).round_().clamp_(0, 255).byte()
    if len(resized) > 1:
        order = torch.tensor([index for indices in alike.values() for index in indices])
        squares = squares[to_device(order.argsort(), squares.device)]
    return squares


@contextmanager
def _in_turn(device: torch.device) -> Iterator[None]:
    """Lets one thread at a time use a stream of its own, and waits for it.

    torchvision decodes on a stream of its own into memory of the current stream, without waiting for work queued there
    that may still use this memory.
    """
    if device.type == "cpu":
        yield
        return
    own, callers = _stream(device), torch.cuda.current_stream(device)
    with _one_at_a_time, torch.cuda.stream(own):
        own.wait_stream(callers)
        try:
            yield
        finally:
            own.synchronize()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _segments(content: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
    """(marker, content) of the segments up to the first scan; none if this is not a JPEG."""
    start = 2 if content.startswith(b"\xff\xd8") else len(content)
    while start + 4 <= len(content) and content[start] == 0xFF:
        marker = content[start + 1]
        if marker == 0xFF:  # a fill byte
            start += 1
            continue
        length = int.from_bytes(content[start + 2 : start + 4])
        if marker == _START_OF_SCAN or length < 2:
            return
        yield marker, bytes(content[start + 4 : start + 2 + length]).ljust(6, b"\0")
        start += 2 + length


def _orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        turn = exif.get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF raises many kinds of errors; with Pillow too such a picture stays as it is stored
        return 1
    return turn if turn in range(1, 9) else 1


def _bounded(headers: Sequence[Header], size_px: int) -> Iterator[list[int]]:
    """Indices of the JPEGs that are decoded at once, in consecutive chunks."""
    waiting: list[int] = []
    pixels = 0
    for index, header in enumerate(headers):
        most = max(header.height * header.width, size_px**2)
        if waiting and pixels + most > PIXELS_AT_ONCE:
            yield waiting
            waiting, pixels = [], 0
        waiting.append(index)
        pixels += most
    if waiting:
        yield waiting


def _upright(images: Tensor, orientation: int) -> Tensor:
    """Images (N, channels, height, width) turned upright from this EXIF orientation."""
    if orientation >= 5:
        images = images.transpose(2, 3)
    axes = {2: [3], 3: [2, 3], 4: [2], 6: [3], 7: [2, 3], 8: [2]}.get(orientation, [])
    return images.flip(axes) if axes else images


def _resized(images: Tensor, size_px: int, fit: Fit) -> Tensor:
    """Images (N, channels, height, width) as squares of float, their values not yet rounded."""
    height, width = images.shape[2:]
    if fit == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, :, top : top + side, left : left + side]
    inner = [size_px, size_px]
    if fit == "pad":
        inner = [max(round(side * size_px / max(height, width)), 1) for side in (height, width)]
    squares = images.float()
    if list(images.shape[2:]) != inner:
        squares = F.interpolate(squares, inner, mode="bilinear", antialias=True, align_corners=False)
    if inner == [size_px, size_px]:
        return squares
    above, before = (size_px - inner[0]) // 2, (size_px - inner[1]) // 2
    return F.pad(squares, (before, size_px - inner[1] - before, above, size_px - inner[0] - above))
