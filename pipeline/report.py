"""A report as sections of plain parts, written as one HTML page with its figures inside, readable without a server,
or as Markdown beside its figures."""

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pandas as pd
from PIL import Image

from pipeline.figures_pictures import in_colour
from pipeline.picture_groups import Shown

THUMBNAIL_PX = 224
JPEG_QUALITY = 85

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1160px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.35rem; margin: 3rem 0 .6rem;
border-top: 2px solid #eee; padding-top: 1.2rem } h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
h1, h2, h3, p, td.text { overflow-wrap: anywhere }
td { white-space: nowrap } td.text { white-space: normal }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .9rem } a { color: #1a5fb4; text-decoration: none }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child, td.text, th.text { text-align: left } td.text { max-width: 26rem; min-width: 3rem }
.scroll { overflow-x: auto } img { max-width: 100% } .row, .plot { margin: 1rem 0 }
.row { display: flex; flex-wrap: wrap; gap: 1rem }
.row > img { max-width: calc(50% - .5rem); object-fit: contain; align-self: flex-start }
.note { color: #555; max-width: 52rem } .numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 }
.number { border: 1px solid #ddd; border-radius: 8px; padding: .5rem 1rem } .number b { display: block;
font-size: 1.5rem; line-height: 1.3 } .number span { color: #555; font-size: .85rem }
.verdict { border-left: 4px solid #d9822b; background: #fff8ef; padding: .6rem 1rem; margin: .7rem 0 }
.verdict.good { border-color: #2e8b57; background: #f1faf4 } .verdict h3 { margin: 0 } .verdict p { margin: .2rem 0 }
code { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; background: #f2f2f2; padding: .1rem .3rem }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1rem }
.pictures.pairs { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)) } figure { margin: 0 }
figure div { display: flex; gap: 3px } figure img { width: 100%; min-width: 0; flex: 1 }
figcaption { font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere } figcaption small { color: #666 }
"""


@dataclass(frozen=True)
class Words:
    """A paragraph; with `small_heading` above it, where there is one."""

    text: str
    small_heading: str = ""


@dataclass(frozen=True)
class Numbers:
    """The few numbers that matter most, each as (value, what it is)."""

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
    shown: Sequence[Shown]
    path: Path
    note: str = ""


Part: TypeAlias = Words | Numbers | Advice | Figures | Pictures | pd.DataFrame


@dataclass(frozen=True)
class Section:
    """A heading and what is under it, in order."""

    heading: str
    parts: Sequence[Part]


def html_report(title: str, sections: Sequence[Section]) -> str:
    """The page. The first section, which has no heading, is what is read first; the others are linked below it."""
    links = [f'<a href="#{place}">{html.escape(one.heading)}</a>' for place, one in enumerate(sections) if one.heading]
    body = [f"<h1>{html.escape(title)}</h1>"]
    for place, section in enumerate(sections):
        body += [f'<h2 id="{place}">{html.escape(section.heading)}</h2>'] if section.heading else []
        body += [_part_in_html(part) for part in section.parts]
        body += [] if section.heading else [f"<nav>{''.join(links)}</nav>"]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><body>\n'
        + "\n".join(body)
        + "\n</body></html>\n"
    )


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
    lines += ["| " + " | ".join(_plain(_spell(value)) for value in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def _part_in_html(part: Part) -> str:
    if isinstance(part, pd.DataFrame):
        return _table(part)
    if isinstance(part, Words):
        heading = f"<h3>{html.escape(part.small_heading)}</h3>" if part.small_heading else ""
        return f'{heading}<p class="note">{html.escape(part.text)}</p>' if part.text else heading
    if isinstance(part, Numbers):
        boxes = [
            f'<div class="number"><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>'
            for value, what in part.pairs
        ]
        return f'<div class="numbers">{"".join(boxes)}</div>'
    if isinstance(part, Advice):
        command = f"<p>Try: <code>{html.escape(part.command)}</code></p>" if part.command else ""
        kind = "verdict good" if part.is_good else "verdict"
        return f'<div class="{kind}"><h3>{html.escape(part.name)}</h3><p>{html.escape(part.words)}</p>{command}</div>'
    if isinstance(part, Figures):
        images = "".join(_image(path.read_bytes(), "png", part.alt) for path in part.paths)
        return f'<div class="{"row" if len(part.paths) > 1 else "plot"}">{images}</div>'
    is_wide = any(len(one.pictures) > 1 for one in part.shown)
    cards = "".join(_card(one) for one in part.shown)
    grid = f'<div class="pictures{" pairs" if is_wide else ""}">{cards}</div>' if cards else "<p>None.</p>"
    return _part_in_html(Words(part.note, part.heading)) + grid


def _part_in_markdown(part: Part, folder: Path) -> str:
    if isinstance(part, pd.DataFrame):
        return markdown_table(part)
    if isinstance(part, Words):
        return "\n\n".join(
            one for one in (f"### {_plain(part.small_heading)}" if part.small_heading else "", _plain(part.text)) if one
        )
    if isinstance(part, Numbers):
        return "\n".join(f"- {_plain(what)}: **{_plain(value)}**" for value, what in part.pairs)
    if isinstance(part, Advice):
        command = f"\n\n    {part.command}" if part.command else ""
        return f"**{_plain(part.name)}.** {_plain(part.words)}{command}"
    if isinstance(part, Figures):
        return "\n".join(f"![{_plain(part.alt)}]({path.relative_to(folder).as_posix()})" for path in part.paths)
    picture = f"![{_plain(part.heading)}]({part.path.relative_to(folder).as_posix()})" if part.shown else "None."
    return "\n\n".join([_part_in_markdown(Words(part.note, part.heading), folder), picture])


def _card(one: Shown) -> str:
    images = "".join(_image(_jpeg(picture), "jpeg", one.caption[0]) for picture in one.pictures)
    lines = [html.escape(line) for line in one.caption]
    caption = "<br>".join([f"<b>{lines[0]}</b>", *lines[1:-1], f"<small>{lines[-1]}</small>"])
    return f"<figure><div>{images}</div><figcaption>{caption}</figcaption></figure>"


def _jpeg(picture: object) -> bytes:
    image = Image.fromarray(in_colour(picture))  # type: ignore[arg-type]
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _image(content: bytes, kind: str, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def _table(table: pd.DataFrame) -> str:
    classes = ["" if pd.api.types.is_numeric_dtype(table[column]) else ' class="text"' for column in table.columns]

    def cells(tag: str, values: Sequence[object]) -> str:
        return "".join(
            f"<{tag}{kind}>{html.escape(_spell(value))}</{tag}>" for kind, value in zip(classes, values, strict=True)
        )

    rows = [f"<tr>{cells('td', row)}</tr>" for row in table.itertuples(index=False)]
    head = f"<thead><tr>{cells('th', list(table.columns))}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _spell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def _plain(text: object) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"[\\`*\[\]<>|$#~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(str(text).split()))
