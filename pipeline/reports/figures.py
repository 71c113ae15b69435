"""What all figures share: colours, a plain figure, and class names as a figure can show them."""

from collections.abc import Sequence
from functools import cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

LONGEST = 24
MOST_LABELS = 80
TRAIN, VALID = "#7a7a7a", "#d1495b"
RULE_COLOURS = {
    "valley": "#1b9e77",
    "steep": "#d95f02",
    "slide": "#7570b3",
    "minimum": "#e7298a",
    "below_rise": "#666666",
}
GROUP_COLOURS = {"early": "#2c7fb8", "late": "#41b6c4", "head": "#253494"}


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Take away what shows no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(False)


def plot_labels(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Each name, in one line, cut in the middle where it is longer than `longest`; "no. 3", by its position among
    `names`, if the figures' font lacks one of its letters or another name looks the same."""
    shown = [_shorten(" ".join(name.split()), longest) for name in names]
    return [
        text if text and _has_font(text) and shown.count(text) == 1 else f"no. {number}"
        for number, text in enumerate(shown, 1)
    ]


def label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Write the class names along both axes of a matrix, of more than MOST_LABELS only some."""
    step = -(-len(classes) // MOST_LABELS)
    names = plot_labels(classes)[::step]
    ticks, size = range(0, len(classes), step), 10 if len(classes) <= 20 else 8
    rotation = 0 if len(classes) <= 3 and max(map(len, names)) < 14 else 90
    axes.set_xticks(ticks, names, rotation=rotation, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)


def _shorten(name: str, longest: int) -> str:
    if len(name) <= longest:
        return name
    tail = longest // 3
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"


def _has_font(text: str) -> bool:
    return all(letter == "\n" or ord(letter) in _letters() for letter in text)


@cache
def _letters() -> frozenset[int]:
    """The code points that the default font can draw."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
