"""Which pictures there are, before any is opened: the packaged set, a folder tree, or a table.

Nothing is decoded here, so a mistake in a folder or a table is told at once.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.listing import Listing, check_listing
from pipeline.source_folder import list_folder
from pipeline.source_table import ENDINGS, list_table


def list_source(source: str, extensions: Sequence[str]) -> Listing:
    """The pictures of `source`, "elpv", a folder or a table, folders sorted by path; UserError where one cannot
    train on them. `extensions` says which files of a folder are pictures."""
    if source == "elpv":
        return _list_elpv()
    place = _existing(source)
    if place.is_dir():
        listing = list_folder(place, {extension.lower() for extension in extensions})
        check_listing(
            listing, source, "class folder with pictures; put the pictures of each class into a folder named after it"
        )
    else:
        listing = list_table(place)
        check_listing(listing, source, "row; give each picture one, with its path and its label")
    return listing


def _list_elpv() -> Listing:
    """Solar cells, "defective" where the defect probability is above 0.5 (Deitsch et al. 2019, section 4.1)."""
    package = importlib.util.find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise UserError(
            "data.source is elpv, but the package elpv-dataset is not installed; "
            "run 'pip install elpv-dataset' or name a folder of your own."
        )
    root = Path(package.origin).parent / "data"
    with (root / "labels.csv").open(encoding="utf-8") as file:
        rows = [line.split() for line in file if line.strip()]
    rows.sort()
    labels = ["defective" if float(row[1]) > 0.5 else "functional" for row in rows]
    return Listing("elpv", root, [row[0] for row in rows], labels)


def _existing(source: str) -> Path:
    try:
        place = Path(source).expanduser().resolve()
        if place.is_dir() or (place.is_file() and place.suffix.lower() in ENDINGS):
            return place
        what = "is a file, not a folder, and no table" if place.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:
        what = f"cannot be looked at ({error})"
    hint = "" if Path(source).is_absolute() else f" (looked for in {Path.cwd()})"
    raise UserError(
        f"data.source is {source}, which {what}{hint}; name a folder of class folders, a table that ends in "
        f"{', '.join(ENDINGS)}, or elpv."
    )
