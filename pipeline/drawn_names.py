"""Class names as a figure can show them: short, unlike each other, and of letters that its font has."""

from collections.abc import Sequence
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

LONGEST = 24


def drawn_names(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Each name, in one line, cut in the middle where it is longer than `longest`; "no. 3", by its place among
    `names`, where the figures' font lacks one of its letters or another name looks the same."""
    shown = [_shorten(" ".join(name.split()), longest) for name in names]
    return [
        text if text and _has_font(text) and shown.count(text) == 1 else f"no. {place}"
        for place, text in enumerate(shown, 1)
    ]


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
