"""Lists the pictures of a source: the packaged data set, a folder of class folders, or a table.

No picture is opened here, so a mistake in a folder or a table is reported at once.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data.readers.corrections_file import read_corrections
from pipeline.data.readers.folder import list_folder
from pipeline.data.readers.listing import Listing, check_listing, note_look_alikes
from pipeline.data.readers.paths import PACKAGED, as_written, set_name, without_scheme
from pipeline.data.readers.soft_labels import DIGITS, PREFIX, SoftLabels
from pipeline.data.readers.table import ENDINGS, ending_of, list_table
from pipeline.data.remote.addresses import is_address, pictures_folder, places_of
from pipeline.system.errors import UserError


def list_source(
    source: str,
    extensions: Sequence[str],
    corrections: str = "",
    soft_labels: bool = False,
    uncertain_weight: float = 1.0,
) -> Listing:
    """The pictures of `source`, "elpv", a folder (sorted by path) or a table; UserError if they cannot be trained on.

    `extensions` are the endings of a folder's pictures, `corrections` a file that `read_corrections` takes. With
    `soft_labels` the packaged cells have their own; those of a table are always taken. Pictures with uncertain labels
    weigh `uncertain_weight` times theirs.
    """
    listing = _list_elpv() if source == PACKAGED else _list_own(source, extensions)
    if listing.soft is None and (soft_labels or uncertain_weight != 1):
        key = "soft_labels is true" if soft_labels else f"uncertain_weight is {uncertain_weight:g}"
        raise UserError(
            f"data.{key}, but {source} names one class for each picture; leave that key out, or give a table with a "
            f"column {PREFIX}CLASS for each class."
        )
    if listing.soft is not None and uncertain_weight != 1:
        own = listing.weights or [1.0] * len(listing.labels)
        by_share = listing.soft.weights(uncertain_weight)
        listing = replace(listing, weights=[weight * share for weight, share in zip(own, by_share, strict=True)])
    if source == PACKAGED and not soft_labels:
        listing = replace(listing, soft=None)
    return replace(listing, corrections=read_corrections(corrections, set(listing.labels)))


def _list_own(source: str, extensions: Sequence[str]) -> Listing:
    if is_address(source):
        # By name, since only this loads what opens addresses, which takes time.
        path = importlib.import_module("pipeline.data.remote.table_file").fetch_table(source)
    else:
        path = _existing_source(source)
    if path.is_dir():
        listing = list_folder(path, {extension.lower() for extension in extensions})
        check_listing(
            listing, source, "class folder with pictures; put the pictures of each class into a folder named after it"
        )
    else:
        listing = list_table(path, source if is_address(source) else "")
        check_listing(listing, source, "row; give each picture one, with its path and its label")
    return replace(listing, notes=[*listing.notes, *note_look_alikes(listing.labels)])


def source_name(source: str) -> str:
    """The name of the pictures of `source`, as their listing has it."""
    if is_address(source):
        folder, (name,) = places_of([source])
        return set_name(pictures_folder() / folder / name)
    return source if source == PACKAGED else set_name(Path(without_scheme(source)))


def _list_elpv() -> Listing:
    """Solar cells, "defective" where the defect probability, 0, 1/3, 2/3 or 1, is above 0.5 (Deitsch et al. 2019,
    section 4.1)."""
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
    defects = [round(float(row[1]), DIGITS) for row in rows]
    soft = SoftLabels(["defective", "functional"], [(share, round(1 - share, DIGITS)) for share in defects])
    return Listing(PACKAGED, root, [row[0] for row in rows], soft.labels(), soft=soft)


def _existing_source(source: str) -> Path:
    try:
        path = as_written(Path(without_scheme(source)))
        path.resolve()  # raises an error for what no file can be called, and for loops of links
        if path.is_dir() or (path.is_file() and ending_of(path)):
            return path
        what = "is a file, not a folder, and no table" if path.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:
        what = f"cannot be read ({error})"
    hint = "" if Path(source).is_absolute() else f" (looked for in {Path.cwd()})"
    raise UserError(
        f"data.source is {source}, which {what}{hint}; name a folder of class folders, a table that ends in "
        f"{', '.join(ENDINGS)}, or elpv."
    )
