"""The report: one HTML page with its figures inside, readable without a server, and a short text for the run's page."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
table { border-collapse: collapse } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .verdict { font-size: 1.1rem }
"""


def html_report(
    title: str, verdict: str, tables: Mapping[str, pd.DataFrame], figures: Sequence[tuple[str, Path]]
) -> str:
    """A page with the `verdict` on top, then the `tables` and the `figures` (heading, PNG file), in their order."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="verdict">{html.escape(verdict)}</p>']
    for heading, table in tables.items():
        parts += [f"<h2>{html.escape(heading)}</h2>", _table(table)]
    for heading, path in figures:
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<h2>{html.escape(heading)}</h2><img alt="{html.escape(heading)}" src="data:image/png;base64,{image}">'
        )
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><body>\n{body}\n</body></html>\n"
    )


def markdown_table(table: pd.DataFrame) -> str:
    """A table in Markdown, floats with four digits."""
    lines = ["| " + " | ".join(str(column) for column in table.columns) + " |", "|" + " --- |" * len(table.columns)]
    lines += ["| " + " | ".join(_spell(value) for value in row) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def _table(table: pd.DataFrame) -> str:
    text: str = table.to_html(index=False, border=0, float_format=lambda value: f"{value:.4f}", escape=True)
    return text


def _spell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
