"""Reads text tables of any dialect: separator, quotes and encoding are found by the header."""

import csv
import re
from collections.abc import Collection, Iterator
from itertools import dropwhile, product
from pathlib import Path

from pipeline.system.errors import UserError

SEPARATORS = (",", ";", "\t", "|", " ")
QUOTES = ('"', "'")
# The first bytes of text files that are not plain UTF-8, as spreadsheets write them.
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# The line in front of the header that tells a spreadsheet the separator.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[;,]*\s*', re.IGNORECASE)


def read_csv(table: Path, needed: Collection[str]) -> tuple[list[str], Iterator[list[str]]]:
    """(header, rows) of a text table in UTF-8 or UTF-16, in the dialect in whose header most of `needed` are."""
    try:
        with table.open("rb") as file:
            start = file.read(3)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
        with table.open(encoding=encoding, newline="") as text:
            separator = _SEPARATOR_LINE.fullmatch(text.readline())
    except UnicodeDecodeError:
        raise unreadable(table, "it is not UTF-8") from None
    except OSError as error:
        raise unreadable(table, error.strerror or str(error)) from None
    skipped = 1 if separator else 0

    def header(dialect: tuple[str, str]) -> list[str]:
        return next(_csv_rows(table, encoding, dialect, skipped), [])

    dialects = product(QUOTES, separator[1] if separator else SEPARATORS)
    best = max(dialects, key=lambda one: len(set(needed) & {name.strip().lower() for name in header(one)}))
    rows = _csv_rows(table, encoding, best, skipped)
    return next(rows, []), rows


def unreadable(table: Path, reason: str) -> UserError:
    """The error for a table that cannot be read."""
    return UserError(f"{table} cannot be read as a table ({reason}); save it as CSV in UTF-8, or as Parquet.")


def _csv_rows(table: Path, encoding: str, dialect: tuple[str, str], skipped: int) -> Iterator[list[str]]:
    """All rows from the first that is not empty, the header, after `skipped` lines."""
    quote, separator = dialect
    try:
        with table.open(encoding=encoding, newline="") as file:
            for _ in range(skipped):
                file.readline()
            rows = csv.reader(file, delimiter=separator, quotechar=quote, skipinitialspace=separator != "\t")
            yield from dropwhile(lambda cells: not any(cells), rows)
    except UnicodeDecodeError:
        raise unreadable(table, "it is not UTF-8") from None
    except csv.Error as error:
        raise unreadable(table, str(error)) from None
