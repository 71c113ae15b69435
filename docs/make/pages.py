"""The parts of pages that are made: what stands between `<!-- output: NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"(?ms)^(<!-- output: ([\w-]+) -->\n)(.*?)(^<!-- end -->)$")


def pages() -> list[Path]:
    """README and all pages of docs."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def blocks(text: str) -> dict[str, str]:
    """The content of each block of a page by its name."""
    return {found[2]: found[3] for found in BLOCK.finditer(text)}


def filled(text: str, contents: Mapping[str, str]) -> str:
    """The page with the blocks named in `contents` replaced; others stay as they are."""

    def fill(found: "re.Match[str]") -> str:
        content = contents.get(found[2])
        return found[0] if content is None else f"{found[1]}{content.rstrip()}\n{found[4]}"

    return BLOCK.sub(fill, text)


def fill_pages(contents: Mapping[str, str], chosen: Iterable[Path] | None = None) -> list[Path]:
    """Replace the blocks of all pages; gives the pages that changed."""
    changed = []
    for page in pages() if chosen is None else chosen:
        text = page.read_text(encoding="utf-8")
        new = filled(text, contents)
        if new != text:
            page.write_text(new, encoding="utf-8")
            changed.append(page)
    return changed


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(columns)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
