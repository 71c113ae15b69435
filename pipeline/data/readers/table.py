"""Lists the pictures of a table, CSV or Parquet, with their labels and optional splits, groups and weights."""

import csv
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.data.readers.listing import SPLITS, Listing
from pipeline.system.errors import UserError

ENDINGS = (".csv", ".tsv", ".parquet")
SEPARATORS = (",", ";", "\t", "|")
NEEDED = ("path", "label")
OPTIONAL = ("split", "group", "weight")
# The first bytes of text files that are not plain UTF-8, as spreadsheets write them.
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def list_table(table: Path) -> Listing:
    """The pictures in the rows of `table`, in their order.

    The columns `path` (relative to the table's folder) and `label` are required; `split`, `group` and `weight` are
    optional and may have empty cells; others are ignored. Labels and groups are always text. A row that repeats an
    earlier one is set aside. Raises UserError, naming the row, for any mistake.
    """
    header, rows = _read_parquet(table) if table.suffix.lower() == ".parquet" else _read_csv(table)
    indices = _columns(header, table)
    columns: dict[str, list[str]] = {name: [] for name in indices}
    seen: dict[str, int] = {}
    set_aside = []
    for number, cells in enumerate(rows, start=1):
        if not any(cells):
            continue
        where = f"{table}, row {number}"
        if len(cells) != len(header):
            raise UserError(
                f"{where} has {len(cells)} cells and the header {len(header)}; put quotes around a cell that contains "
                "the separator."
            )
        row = _checked({name: cells[index].strip() for name, index in indices.items()}, table.parent, where)
        earlier = seen.setdefault(row["path"], len(columns["path"]))
        if earlier == len(columns["path"]):
            for name, values in columns.items():
                values.append(row[name])
            continue
        other = next((name for name in indices if columns[name][earlier] != row[name]), None)
        if other is not None:
            raise UserError(
                f"{where} gives {row['path']} the {other} {row[other] or 'of an empty cell'}, and an earlier row gave "
                f"it {columns[other][earlier] or 'an empty cell'}; keep one of them."
            )
        set_aside.append((row["path"], f"is named again in row {number}, which adds nothing"))
    splits, groups = (columns[name] if any(columns.get(name, ())) else None for name in ("split", "group"))
    weights = [float(text or 1) for text in columns["weight"]] if any(columns.get("weight", ())) else None
    return Listing(table.stem, table.parent, columns["path"], columns["label"], splits, set_aside, groups, weights)


def _columns(header: Sequence[str], table: Path) -> dict[str, int]:
    """The index of each column that is read, by its name in lower case."""
    names = [name.strip().lower() for name in header]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        found = ", ".join(name for name in header if name.strip()) or "none"
        raise UserError(f"{table} has no column {' and no column '.join(missing)} (its columns are: {found}); add it.")
    twice = next((name for name in (*NEEDED, *OPTIONAL) if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{table} has two columns {twice}; keep one of them.")
    return {name: names.index(name) for name in (*NEEDED, *OPTIONAL) if name in names}


def _checked(row: Mapping[str, str], folder: Path, where: str) -> dict[str, str]:
    """A row with its path relative to `folder` and its split in our name for it; UserError for a mistake in it."""
    for name in NEEDED:
        if not row[name]:
            raise UserError(f"{where} has no {name}; fill it in, or remove the row.")
    split = row.get("split", "")
    if split and split.lower() not in SPLITS:
        raise UserError(f"{where} has the split {split}; it takes train, valid, test, or nothing.")
    if row.get("weight"):
        _check_weight(row["weight"], where)
    path = os.path.normpath(row["path"])
    if os.path.isabs(path):
        path = os.path.relpath(path, folder)
    if path.startswith(".."):
        raise UserError(f"{where} names {row['path']}, outside the table's folder {folder}; put the table above it.")
    checked = {**row, "path": path, "label": sys.intern(row["label"])}
    return checked | ({"split": SPLITS.get(split.lower(), "")} if "split" in row else {})


def _check_weight(text: str, where: str) -> None:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"{where} has the weight {text}; it takes a number above 0, or nothing for 1.")


def _read_csv(table: Path) -> tuple[list[str], Iterator[list[str]]]:
    """(header, rows) of a text table in UTF-8 or UTF-16, with the one of SEPARATORS that its header uses."""
    try:
        with table.open("rb") as file:
            start = file.read(3)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8")
        with table.open(encoding=encoding, newline="") as file:
            line = file.readline()
    except UnicodeDecodeError:
        raise _unreadable(table, "it is not UTF-8") from None
    except OSError as error:
        raise _unreadable(table, error.strerror or str(error)) from None
    separator = max(SEPARATORS, key=lambda one: len(set(NEEDED) & {name.strip().lower() for name in line.split(one)}))
    rows = _csv_rows(table, encoding, separator)
    return next(rows, []), rows


def _csv_rows(table: Path, encoding: str, separator: str) -> Iterator[list[str]]:
    try:
        with table.open(encoding=encoding, newline="") as file:
            yield from csv.reader(file, delimiter=separator, skipinitialspace=True)
    except UnicodeDecodeError:
        raise _unreadable(table, "it is not UTF-8") from None
    except csv.Error as error:
        raise _unreadable(table, str(error)) from None


def _read_parquet(table: Path) -> tuple[list[str], Iterable[list[str]]]:
    """(header, rows) of a Parquet file, all as text, with "" for null."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(table)
        header = [name for name in file.schema_arrow.names if name.strip().lower() in (*NEEDED, *OPTIONAL)]
        whole = file.read(columns=header)
        texts = [pc.fill_null(pc.cast(column, pa.string()), "").to_pylist() for column in whole.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(table, " ".join(str(error).split())) from None
    return header, (list(cells) for cells in zip(*texts, strict=True))


def _unreadable(table: Path, reason: str) -> UserError:
    return UserError(f"{table} cannot be read as a table ({reason}); save it as CSV in UTF-8, or as Parquet.")
