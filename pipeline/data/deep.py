"""Deep pictures, of more than 8 bits a channel: which numbers become black and white.

X-ray machines and microscopes write 12 bits, or counts, into files of 16 and 32 bits or floats. Scaled from all that
such a file could hold, their pictures would be one grey level; so they are scaled from the range of the training
pictures.
"""

import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

Numbers: TypeAlias = npt.NDArray[np.generic]
# What a recipe may ask for: from the training pictures, from what their files can hold, or these numbers.
Choice: TypeAlias = Literal["auto", "container"] | Sequence[float]
# The numbers that become 0 and 255, for "integer" and for "float" pictures. One without is scaled by its container.
Ranges: TypeAlias = Mapping[str, Sequence[float]]

SIXTEEN_BITS = ";16"
_DEEP_GREY_MODES = {"I": "integer", "F": "float"} | dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), "integer")
# Steps that take many bytes per pixel are done on strips of this size.
PIXELS_AT_ONCE = 4_000_000
# Pixels of a picture that are looked at for its range.
MEASURED_PIXELS = 1_000_000
# A picture's range leaves out hot and dead pixels; the inner one tells where nearly all of its pixels are.
PERCENTILES = (0.1, 1, 99, 99.9)
LEAST_LEVELS, LEVELS = 16, 256
_BITS_PER_SAMPLE = 258
_BYTE_ORDERS = ("B", "L", "N")


class Span(NamedTuple):
    """PERCENTILES of the finite numbers of a picture, or of a set of pictures."""

    low: float
    inner_low: float
    inner_high: float
    high: float


def kind_of(mode: str) -> str:
    """The kind of a picture's numbers, by its mode (see `mode_of`): "integer", "float", or "" if it has 8 bits."""
    return "integer" if mode.endswith(SIXTEEN_BITS) else _DEEP_GREY_MODES.get(mode, "")


def mode_of(picture: Image.Image, content: bytes) -> str:
    """The mode of the loaded `picture` in `content`, with ";16" after it if its colours have 16 bits, of which Pillow
    keeps 8."""
    return picture.mode + SIXTEEN_BITS if _low_bytes(picture, content) else picture.mode


def measure(picture: Image.Image, content: bytes) -> Span | None:
    """The span of the loaded `picture` in `content`; None for one of 8 bits, or if no number of it is finite."""
    low = _low_bytes(picture, content)
    if low is None and not kind_of(picture.mode):
        return None
    step = max(int((picture.width * picture.height / MEASURED_PIXELS) ** 0.5), 1)
    seen = [values[::step, ::step].ravel() for _, values in _strips_of(picture, low)]
    numbers = np.concatenate(seen).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return None
    below = np.percentile(numbers, PERCENTILES[:2], method="higher")
    above = np.percentile(numbers, PERCENTILES[2:], method="lower")
    return Span(*below.tolist(), *above.tolist())


def span_of_set(spans: Sequence[Span]) -> Span:
    """The span that pictures share: their widest, without the hundredth, and at least one of ten or more, that reaches
    furthest at either end."""
    left_out = min(len(spans) // 10, max(len(spans) // 100, 1))
    columns = [sorted(column) for column in zip(*spans, strict=True)]
    return Span(*(column[left_out] for column in columns[:2]), *(column[-1 - left_out] for column in columns[2:]))


def choose_ranges(choice: Choice, spans: Mapping[str, Span]) -> dict[str, list[float]]:
    """The ranges that a recipe asks for, where the training pictures of each kind have these spans."""
    if choice == "container":
        return {}
    if not isinstance(choice, str):
        return {kind: [float(number) for number in choice] for kind in ("integer", "float")}
    return {kind: [span.low, span.high] for kind, span in spans.items() if span.low < span.high}


def describe_ranges(ranges: Ranges, spans: Mapping[str, Span]) -> list[str]:
    """Lines for the console: from what deep pictures are scaled, and whether nearly all of their pixels use a small
    part of that."""
    lines = []
    for kind, span in spans.items():
        low, high = ranges.get(kind) or _container(kind == "float", span.low, span.high)
        lines.append(f"  deep pictures ({kind}): {low:g} to {high:g} become black to white")
        used = min(span.inner_high, high) - max(span.inner_low, low)
        if span.inner_low < span.inner_high and used * LEVELS < LEAST_LEVELS * (high - low):
            lines.append(
                f"    98 % of the training pixels, {span.inner_low:g} to {span.inner_high:g}, use less than a "
                f"{LEVELS // LEAST_LEVELS}th of that; if the classes differ there, set data.range to "
                f"{'auto or ' if [low, high] != [span.low, span.high] else ''}[{span.inner_low:g}, {span.inner_high:g}]"
            )
    return lines


def grey_of(picture: Image.Image, ranges: Ranges) -> Image.Image:
    """A picture of a deep grey mode in mode L."""
    values = np.asarray(picture)
    return Image.fromarray(_to_eight_bits(values, ranges.get(kind_of(picture.mode)) or _own_container(values)))


def scale_colours(picture: Image.Image, content: bytes, ranges: Ranges) -> None:
    """Scale the colours of the loaded `picture` in `content`, in place, if they have 16 bits and there is a range for
    them; its transparency stays."""
    low = _low_bytes(picture, content) if "integer" in ranges else None
    if low is None:
        return
    for top, values in _strips_of(picture, low):
        strip = np.array(picture.crop((0, top, picture.width, top + len(values))))
        strip[..., :3] = _scaled(values, *ranges["integer"])
        picture.paste(Image.fromarray(strip, picture.mode), (0, top))


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """(first row, row after the last) of strips of at most PIXELS_AT_ONCE, or of one row."""
    rows = max(PIXELS_AT_ONCE // max(width, 1), 1)
    yield from ((top, min(top + rows, height)) for top in range(0, height, rows))


def _strips_of(picture: Image.Image, low: Image.Image | None) -> Iterator[tuple[int, Numbers]]:
    """(first row, numbers) of each strip; of colours, whose low bytes are `low`, without transparency."""
    if low is None:
        values: Numbers = np.asarray(picture)
        yield from ((top, values[top:bottom]) for top, bottom in strips(picture.width, picture.height))
        return
    for top, bottom in strips(picture.width, picture.height):
        box = (0, top, picture.width, bottom)
        bytes_ = [np.asarray(one.crop(box))[..., :3].astype(np.uint16) for one in (picture, low)]
        yield top, bytes_[0] << 8 | bytes_[1]


def _may_be_deep_colour(picture: Image.Image, content: bytes) -> bool:
    """Whether the header says so; this opens nothing."""
    if picture.mode not in ("RGB", "RGBA"):
        return False
    if picture.format == "PNG":
        return content[24:25] == b"\x10"
    tags = getattr(picture, "tag_v2", {})
    return picture.format == "TIFF" and set(tags.get(_BITS_PER_SAMPLE, ())) == {16}


def _low_bytes(picture: Image.Image, content: bytes) -> Image.Image | None:
    """The low bytes of the colours of `picture`, if they have 16 bits: Pillow keeps the high ones, and gives the others
    if it is told that the file is of the other byte order."""
    if not _may_be_deep_colour(picture, content):
        return None
    other = Image.open(io.BytesIO(content), formats=[str(picture.format)])
    assert isinstance(other, ImageFile.ImageFile)
    tiles = [tile._replace(args=_swapped(tile.args)) for tile in other.tile]
    if not all(tile.args for tile in tiles):
        return None
    other.tile = tiles
    if picture.format == "PNG" and content[25] == 4:
        return Image.merge("RGB", [other.getchannel(1)] * 3)
    return other


def _swapped(args: "tuple[object, ...] | str | None") -> "tuple[object, ...] | str | None":
    """A tile's arguments with the raw mode of the other byte order; None if it is not one of 16-bit colours."""
    if isinstance(args, tuple):
        raw = _swapped(str(args[0]))
        return raw and (raw, *args[1:])
    if args == "LA;16B":
        return "RGBA"  # grey and transparency, each as its high and its low byte
    mode, _, order = (args or "").partition(SIXTEEN_BITS)
    if mode not in ("RGB", "RGBX", "RGBA") or order not in _BYTE_ORDERS:
        return None
    is_little = order == "L" or (order == "N" and sys.byteorder == "little")
    return f"{mode}{SIXTEEN_BITS}{'B' if is_little else 'L'}"


def _container(is_float: bool, least: float, most: float) -> tuple[float, float]:
    """What files of such numbers can hold: 16 bits, and so wider integers within them; floats 0 to 1 or 0 to 255, the
    first that holds them; if numbers lie outside, their own span."""
    low, high = 0.0, 65535.0
    if is_float:
        high = next((limit for limit in (1.0, 255.0) if most <= limit), high)
    return (least, most) if least < low or most > high else (low, high)


def _own_container(values: Numbers) -> tuple[float, float]:
    # One strip at a time: as float64 a whole picture would take eight bytes a pixel.
    strips_ = (np.nan_to_num(values[slice(*rows)].astype(np.float64), posinf=0, neginf=0) for rows in _rows(values))
    ends = [(float(strip.min()), float(strip.max())) for strip in strips_]
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    return _container(values.dtype.kind == "f", least, most)


def _rows(values: Numbers) -> Iterable[tuple[int, int]]:
    return strips(values.shape[1], values.shape[0])


def _to_eight_bits(values: Numbers, range_: Sequence[float]) -> npt.NDArray[np.uint8]:
    bytes_ = np.zeros(values.shape, dtype=np.uint8)
    for rows in _rows(values):
        bytes_[slice(*rows)] = _scaled(values[slice(*rows)], *range_)
    return bytes_


def _scaled(values: Numbers, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Values from `low` to `high` as 0 to 255, those outside as the nearer end; NaN and infinity become black."""
    numbers = values.astype(np.float64)
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    numbers[~np.isfinite(numbers)] = low
    return ((numbers - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
