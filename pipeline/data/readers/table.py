"""Lists the pictures of a table, CSV or Parquet, with their labels, hard or soft, and optional splits, groups and
weights."""

import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from pipeline.data.readers.csv_file import read_csv, unreadable
from pipeline.data.readers.junk import is_junk
from pipeline.data.readers.listing import Listing
from pipeline.data.readers.paths import picture_below, set_name
from pipeline.data.readers.soft_labels import SoftLabels, check_likeliest, class_columns, note_ties, read_shares
from pipeline.data.readers.split_names import split_of
from pipeline.data.remote.addresses import (
    address_beside,
    check_address,
    is_address,
    pictures_folder,
    places_of,
    without_secrets,
)
from pipeline.system.errors import UserError
from pipeline.system.text import plain_name

ENDINGS = (".csv", ".tsv", ".parquet")
NEEDED = ("path", "label")
OPTIONAL = ("split", "group", "weight")
# In front of a class's name, for the column of its probabilities.
CLASS = "probability of "


def list_table(table: Path, address: str = "", is_labelled: bool = True) -> Listing:
    """The pictures in the rows of `table`, in their order; with the `address` that it was fetched from, its paths are
    relative to that.

    The columns `path` (relative to the table's folder, or for all pictures an address) and `label` are required;
    `split`, `group` and `weight` are optional and may have empty cells; others are ignored. Labels and groups are
    always text. In place of `label` there may be a column for each class with its probability (see `class_columns`);
    the label is the likeliest then. Unless the table `is_labelled`, only `path` is read, and labels are empty. A row
    that repeats an earlier one is set aside. Raises UserError, naming the row, for any mistake.
    """
    needed, optional = (NEEDED, OPTIONAL) if is_labelled else (NEEDED[:1], ())
    is_text = ending_of(table) != ".parquet"
    header, rows = read_csv(table, needed) if is_text else _read_parquet(table, needed, optional)
    indices = _columns(header, table, needed, optional)
    filled = ((number, cells) for number, cells in enumerate(rows, start=1) if any(cells))
    first = next(filled, (1, list[str]()))
    folder = _folder(table, first[1], indices["path"])
    # R writes the rows' numbers in front, and no name for them.
    has_row_names = len(first[1]) == len(header) + 1 and _is_shifted(folder, first[1], indices["path"])
    start = first[1][1:] if has_row_names else first[1]
    below = None if address or any(map(is_address, start[indices["path"] : indices["path"] + 1])) else folder
    columns: dict[str, list[str]] = {name: [] for name in indices}
    seen: dict[str, int] = {}
    set_aside = []
    for number, cells in chain([first], filled) if first[1] else ():
        where = f"{address or table}, row {number}"
        cells = _trimmed(cells[1:] if has_row_names else cells, len(header), where)
        given = {name: cells[index].strip() for name, index in indices.items()}
        if address and given["path"]:
            given["path"] = address_beside(address, given["path"], where)
        row = _checked(given, below, where)
        shown = without_secrets(row["path"]) if below is None else row["path"]
        if is_junk(row["path"]):
            set_aside.append((shown, "is no picture but a file that a system leaves behind"))
            continue
        earlier = seen.setdefault(shown, len(columns["path"]))
        if earlier == len(columns["path"]):
            for name, values in columns.items():
                values.append(row[name])
            continue
        other = next((name for name in indices if name != "path" and columns[name][earlier] != row[name]), None)
        if other is not None:
            raise UserError(
                f"{where} gives {shown} the {other} {row[other] or 'of an empty cell'}, and an earlier row gave "
                f"it {columns[other][earlier] or 'an empty cell'}; keep one of them."
            )
        set_aside.append((shown, f"is named again in row {number}, which adds nothing"))
    splits, groups = (columns[name] if any(columns.get(name, ())) else None for name in ("split", "group"))
    weights = [float(text or 1) for text in columns["weight"]] if any(columns.get("weight", ())) else None
    root, paths, addresses = folder, columns["path"], dict[str, str]()
    if below is None and paths:
        common, paths = places_of(columns["path"])
        root, addresses = pictures_folder() / common, dict(zip(paths, columns["path"], strict=True))
    found = set_name(table), root, paths
    if not is_labelled:
        return Listing(*found, [""] * len(paths), set_aside=set_aside, addresses=addresses)
    if "label" in columns:
        return Listing(*found, columns["label"], splits, set_aside, groups, weights, addresses=addresses)
    soft = _soft_labels(columns)
    if soft.shares:
        check_likeliest(soft, str(table))
    notes = note_ties(soft)
    return Listing(*found, soft.labels(), splits, set_aside, groups, weights, notes, soft=soft, addresses=addresses)


def ending_of(table: Path) -> str:
    """The one of ENDINGS that the table has, or the file that it is a link to; "" if it is no table."""
    endings = (table.suffix.lower(), table.resolve().suffix.lower())
    return next((ending for ending in endings if ending in ENDINGS), "")


def _folder(table: Path, cells: Sequence[str], index: int) -> Path:
    """The folder that paths are relative to: where the table is named, or, if the first picture lies there alone,
    where the file that it is a link to is."""
    name = cells[index].strip() if len(cells) > index else ""
    folders = table.parent, table.resolve().parent
    return next((folder for folder in folders if name and os.path.lexists(folder / name)), table.parent)


def _is_shifted(folder: Path, cells: Sequence[str], index: int) -> bool:
    at, after = (
        is_address(cell) or os.path.lexists(folder / cell) for cell in map(str.strip, cells[index : index + 2])
    )
    return after and not at


def _trimmed(cells: list[str], count: int, where: str) -> list[str]:
    """`cells` without empty ones after the header's last; UserError if there are not `count` of them."""
    if len(cells) != count and (len(cells) < count or any(cells[count:])):
        raise UserError(
            f"{where} has {len(cells)} cells and the header {count}; put quotes around a cell that contains the "
            "separator."
        )
    return cells[:count]


def _soft_labels(columns: Mapping[str, list[str]]) -> SoftLabels:
    """The probabilities in the checked cells of the columns that are named after classes."""
    classes = sorted(name for name in columns if name.startswith(CLASS))
    rows = zip(*(columns[name] for name in classes), strict=True)
    return SoftLabels([name.removeprefix(CLASS) for name in classes], [tuple(map(float, row)) for row in rows])


def _columns(header: Sequence[str], table: Path, needed: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """The index of each column that is read, by its name in lower case, or, if it holds the probabilities of a class,
    by CLASS and the class's name."""
    names = [name.strip().lower() for name in header]
    soft = class_columns(header, (*needed, *optional), table) if "label" in needed else {}
    missing = [name for name in needed if name not in names and not (name == "label" and soft)]
    if missing:
        found = ", ".join(name for name in header if name.strip()) or "none"
        raise UserError(f"{table} has no column {' and no column '.join(missing)} (its columns are: {found}); add it.")
    twice = next((name for name in (*needed, *optional) if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{table} has two columns {twice}; keep one of them.")
    read = {name: names.index(name) for name in (*needed, *optional) if name in names}
    return read | {f"{CLASS}{label}": index for label, index in soft.items()}


def _checked(row: Mapping[str, str], folder: Path | None, where: str) -> dict[str, str]:
    """A row with its path relative to `folder`, or with its address if that is None, and its split in our name for it;
    UserError for a mistake in it."""
    names = {name: plain_name(row[name]) for name in ("label", "group") if name in row}
    for name in (name for name in NEEDED if name in row):
        if not names.get(name, row[name]):
            raise UserError(f"{where} has no {name}; fill it in, or remove the row.")
    split = split_of(row.get("split", ""))
    if split is None:
        raise UserError(f"{where} has the split {row['split']}; it takes train, valid, test, or nothing.")
    if row.get("weight"):
        _check_weight(row["weight"], where)
    path = _address(row["path"], where) if folder is None else picture_below(folder, row["path"], where)
    checked = {**row, **names, "path": path} | ({"split": split} if "split" in row else {})
    if "label" in names:
        return checked | {"label": sys.intern(names["label"])}
    cells = {name.removeprefix(CLASS): text for name, text in row.items() if name.startswith(CLASS)}
    if not cells:
        return checked
    shares = zip(cells, read_shares(cells, where), strict=True)
    return checked | {f"{CLASS}{name}": sys.intern(str(share)) for name, share in shares}


def _address(text: str, where: str) -> str:
    if not is_address(text):
        raise UserError(f"{where} names {text}, on disk, and the first row an address; name all pictures in one way.")
    check_address(text, where)
    return text


def _check_weight(text: str, where: str) -> None:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"{where} has the weight {text}; it takes a number above 0, or nothing for 1.")


def _read_parquet(table: Path, needed: Sequence[str], optional: Sequence[str]) -> tuple[list[str], Iterable[list[str]]]:
    """(header, rows) of a Parquet file, all as text, with "" for null."""
    import pyarrow as pa  # these are loaded for Parquet alone: the door reads a table before anything heavy is loaded
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(table)
        names = file.schema_arrow.names
        soft = class_columns(names, (*needed, *optional), table) if "label" in needed else {}
        chosen = [index for index, name in enumerate(names) if name.strip().lower() in (*needed, *optional)]
        header = [names[index] for index in sorted({*chosen, *soft.values()})]
        whole = file.read(columns=header)
        texts = [pc.fill_null(pc.cast(column, pa.string()), "").to_pylist() for column in whole.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(table, " ".join(str(error).split())) from None
    return header, (list(cells) for cells in zip(*texts, strict=True))
