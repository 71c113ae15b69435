"""Lists pictures without labels, to be predicted: those of a folder, or those that a table names."""

import importlib
from collections.abc import Collection
from pathlib import Path

from pipeline.data.readers.folder import find_folder, list_pictures
from pipeline.data.readers.listing import Listing
from pipeline.data.readers.paths import as_written, set_name, without_scheme
from pipeline.data.readers.table import ENDINGS, ending_of, list_table
from pipeline.data.remote.addresses import check_source, is_address
from pipeline.system.console import say
from pipeline.system.errors import UserError


def find_pictures(data: str) -> str:
    """The absolute path of a folder with files or of a table, or the address of a table; UserError if `data` is none
    of these. What is at an address is looked for later."""
    if is_address(data):
        check_source(data, "data")
        return data
    return str(_table(data) or find_folder(data))


def list_unlabelled(data: str, extensions: Collection[str]) -> Listing:
    """The pictures of what `find_pictures` gives: of a folder all files at any depth that end in one of `extensions`,
    of a table those of its column `path`, in its order, as `list_table` reads it. UserError if there are none."""
    table = _fetched(data) if is_address(data) else _table(data)
    if table is None:
        root, pictures = list_pictures(data, extensions)
        return Listing(set_name(root), root, [str(path.relative_to(root)) for path in pictures], [""] * len(pictures))
    listing = list_table(table, data if is_address(data) else "", is_labelled=False)
    if not listing.paths:
        raise UserError(f"data is {data}, where no row names a picture; give each one a row with its path.")
    if listing.set_aside:
        path, reason = listing.set_aside[0]
        say(f"left out: {len(listing.set_aside):,} of the rows of {data}, such as {path}: {reason}")
    return listing


def _table(data: str) -> Path | None:
    try:
        path = as_written(Path(without_scheme(data)))
        return path if path.is_file() and ending_of(path) in ENDINGS else None
    except (OSError, RuntimeError, ValueError):
        return None


def _fetched(address: str) -> Path:
    # By name, since only this loads what opens addresses, which takes time.
    table: Path = importlib.import_module("pipeline.data.remote.table_file").fetch_table(address, "data")
    return table
