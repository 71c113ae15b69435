"""Figures made of pictures, each under its caption."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pipeline.decode import Pixels
from pipeline.drawn_names import drawn_names
from pipeline.picture_groups import Shown

COLUMNS = 4
CAPTION_LETTERS = 30
LONGEST_LINE = 60


def pictures_figure(shown: Sequence[Shown], title: str) -> Figure:
    """Pictures in a grid of four columns, each above its caption; those of one `Shown` lie side by side."""
    wide = max((len(one.pictures) for one in shown), default=1)
    columns = min(COLUMNS // min(wide, 2), max(len(shown), 1))
    rows = max(-(-len(shown) // columns), 1)
    figure = Figure(figsize=(2.6 * columns * wide, 3.0 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, one in zip(figure.axes, shown, strict=False):
        axes.imshow(np.concatenate([in_colour(picture) for picture in one.pictures], axis=1))
        axes.set_title("\n".join(_lines(one.caption, wide)), fontsize=8, parse_math=False)
    return figure


def in_colour(picture: Pixels) -> Pixels:
    """A picture (height, width, 1 or 3) with three channels."""
    return picture.repeat(3, axis=-1) if picture.shape[-1] == 1 else picture


def _lines(caption: Sequence[str], wide: int) -> list[str]:
    """The caption's lines, cut and wrapped to fit, in letters that the font has."""
    lines = []
    for line in caption:
        (drawn,) = drawn_names([line], LONGEST_LINE * wide)
        shown = line.encode("ascii", "replace").decode() if drawn.startswith("no. ") else drawn
        lines += textwrap.wrap(shown, CAPTION_LETTERS * wide)
    return lines
