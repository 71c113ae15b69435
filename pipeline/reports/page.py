"""A report as sections of parts, written as one HTML page with its figures inside, readable without a server, or as
Markdown beside its figures."""

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline.data.decode import Pixels
from pipeline.reports.pictures import CaptionedPictures, in_colour

THUMBNAIL_PX = 224
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; with `small_heading` above it, where there is one."""

    text: str
    small_heading: str = ""


@dataclass(frozen=True)
class KeyFigures:
    """The few numbers that matter most, each as (value, its meaning)."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Advice:
    """A verdict: its `name`, its `words`, and the `command` to try next, where there is one; `is_good` where there is
    nothing to mend."""

    name: str
    words: str
    command: str = ""
    is_good: bool = False


@dataclass(frozen=True)
class Figures:
    """PNG files, side by side where there is more than one."""

    paths: Sequence[Path]
    alt: str


@dataclass(frozen=True)
class Pictures:
    """Pictures under a small heading and a `note`; `path` is the figure that shows the same outside the HTML page."""

    heading: str
    shown: Sequence[CaptionedPictures]
    path: Path
    note: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether any of them lie side by side."""
        return any(len(one.pictures) > 1 for one in self.shown)


@dataclass(frozen=True)
class Mending:
    """The bar with which labels are mended: filters by these `classes` and `splits`, and a download of corrections.csv,
    `earlier` ones (rows by column) among them, which `command` applies. Choices are kept by the browser under `key`."""

    classes: Sequence[str]
    splits: Sequence[str]
    earlier: Sequence[Mapping[str, str]]
    command: str
    key: str

    @property
    def data(self) -> dict[str, object]:
        """What the page's script reads."""
        return {"key": self.key, "classes": list(self.classes), "earlier": list(self.earlier)}


@dataclass(frozen=True)
class Html:
    """Ready-made HTML, such as an interactive figure, shown as it is."""

    content: str


Part: TypeAlias = Paragraph | KeyFigures | Advice | Figures | Pictures | Mending | Html | pd.DataFrame


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, in order."""

    heading: str
    parts: Sequence[Part]


def html_report(title: str, sections: Sequence[Section]) -> str:
    """The page. The first section, which has no heading, is read first; the others are linked below it."""
    return render("page.html", title=title, sections=sections)


def render(template: str, **facts: object) -> str:
    """A page by one of templates/, which shows these `facts`."""
    return _TEMPLATES.get_template(template).render(**facts)


def markdown_report(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The same in Markdown, to lie in `folder`, from which its figures are linked."""
    lines = [f"# {_plain(title)}"]
    for section in sections:
        lines += [f"## {_plain(section.heading)}"] if section.heading else []
        lines += [_part_in_markdown(part, folder) for part in section.parts]
    return "\n\n".join(line for line in lines if line) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """A table in Markdown, floats with four digits, what is not defined empty."""
    lines = ["| " + " | ".join(_plain(column) for column in table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += [
        "| " + " | ".join(_plain(_format_value(value)) for value in row) + " |" for row in table.itertuples(index=False)
    ]
    return "\n".join(lines)


def _part_in_markdown(part: Part, folder: Path) -> str:
    if isinstance(part, pd.DataFrame):
        return markdown_table(part)
    if isinstance(part, Paragraph):
        return "\n\n".join(
            one for one in (f"### {_plain(part.small_heading)}" if part.small_heading else "", _plain(part.text)) if one
        )
    if isinstance(part, KeyFigures):
        return "\n".join(f"- {_plain(meaning)}: **{_plain(value)}**" for value, meaning in part.pairs)
    if isinstance(part, Advice):
        command = f"\n\n    {part.command}" if part.command else ""
        return f"**{_plain(part.name)}.** {_plain(part.words)}{command}"
    if isinstance(part, Html | Mending):
        return ""
    if isinstance(part, Figures):
        return "\n".join(f"![{_plain(part.alt)}]({path.relative_to(folder).as_posix()})" for path in part.paths)
    picture = f"![{_plain(part.heading)}]({part.path.relative_to(folder).as_posix()})" if part.shown else "None."
    return "\n\n".join([_part_in_markdown(Paragraph(part.note, part.heading), folder), picture])


def _png(path: Path) -> str:
    """A file in base64."""
    return base64.b64encode(path.read_bytes()).decode()


def _thumbnail(picture: Pixels) -> str:
    """A small JPEG of the picture in base64."""
    image = Image.fromarray(in_colour(picture))
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(file.getvalue()).decode()


def _text_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if not pd.api.types.is_numeric_dtype(table[column])]


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def _plain(text: object) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"[\\`*\[\]<>|$#~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(str(text).split()))


# A run is reused whatever its page looks like: the templates are no part of what a stage's result depends on.
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "kind": lambda part: type(part).__name__,
    "png": _png,
    "thumbnail": _thumbnail,
    "text_columns": _text_columns,
    "cell": _format_value,
}
