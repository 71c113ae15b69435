"""What all figures share: colours, a plain figure, and class names as a figure can show them."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

LONGEST = 24
DPI = 110
COMPRESS_LEVEL = 2  # a third of the time that 6, Pillow's own, takes for photographs, and a tenth more bytes
MOST_LABELS = 80
TRAIN, VALID, KEPT = "#7a7a7a", "#d1495b", "#333333"
RULE_COLOURS = {
    "valley": "#1b9e77",
    "steep": "#d95f02",
    "slide": "#7570b3",
    "minimum": "#e7298a",
    "below_rise": "#666666",
}
GROUP_COLOURS = {"early": "#2c7fb8", "late": "#41b6c4", "head": "#253494"}


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Write the figure to `folder`/figures/`name`.png, and give that path."""
    path = folder / "figures" / f"{name}.png"
    figure.savefig(path, dpi=DPI, pil_kwargs={"compress_level": COMPRESS_LEVEL})
    return path


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
    """Each name, in one line, cut in the middle where it is longer than `longest`, with "?" for what the figures' font
    lacks, such as emoji; "no. 3", by its position among `names`, if nothing to read is left of it or another name looks
    the same."""
    shown = [_shorten(_in_font(" ".join(name.split())), longest) for name in names]
    counts = Counter(shown)
    return [text if text and counts[text] == 1 else f"no. {number}" for number, text in enumerate(shown, 1)]


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


def _in_font(text: str) -> str:
    """`text` with a "?" for each stretch of letters that the font lacks; empty if no letter or digit is left."""
    stretches = groupby(text, lambda letter: ord(letter) in _letters())
    kept = "".join("".join(letters) if is_drawn else "?" for is_drawn, letters in stretches)
    return kept if kept == text or any(letter.isalnum() for letter in kept) else ""


@cache
def _letters() -> frozenset[int]:
    """The code points that the default font can draw."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())
