"""Reads corrections of labels, as `report.html` makes them: by a picture's content, so that names may change."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.readers.csv_file import read_csv
from pipeline.data.readers.paths import as_written
from pipeline.system.errors import UserError
from pipeline.system.text import plain_name

NEEDED = ("hash", "action", "label")
RELABEL, DROP, KEEP = ACTIONS = "relabel", "drop", "keep"


@dataclass(frozen=True)
class Correction:
    """What becomes of a picture: the `action` RELABEL gives it the `label`, DROP leaves it out, and KEEP says that the
    `label` it has is right, which changes nothing but that it is not doubted again. `path` says where it was."""

    action: str
    label: str = ""
    path: str = ""


def read_corrections(source: str, classes: Collection[str]) -> dict[str, Correction]:
    """The corrections in the file `source` by the hash (SHA-256) of a picture's content; none if `source` is empty.

    The file is CSV with the columns `hash`, `action` (one of ACTIONS) and `label`, and maybe `path`. UserError, naming
    the row, for any mistake, such as a new label that is none of `classes`.
    """
    if not source:
        return {}
    file = as_written(Path(source))
    if not file.is_file():
        hint = "" if Path(source).is_absolute() else f" (looked for in {Path.cwd()})"
        raise UserError(
            f"data.corrections is {source}, which does not exist{hint}; name a file that report.html of evaluate made."
        )
    header, rows = read_csv(file, NEEDED)
    names = [name.strip().lower() for name in header]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        found = ", ".join(name for name in names if name) or "none"
        raise UserError(
            f"{source} has no column {' and no column '.join(missing)} (its columns are: {found}); data.corrections "
            "takes a file that report.html of evaluate made."
        )
    corrections: dict[str, Correction] = {}
    for number, cells in enumerate(rows, start=1):
        if not any(cells):
            continue
        where = f"{source}, row {number}"
        row = dict(zip(names, (*cells, *[""] * len(names)), strict=False))
        correction = Correction(*_decision(row, classes, where), row.get("path", ""))
        earlier = corrections.setdefault(row["hash"].strip().lower(), correction)
        if (earlier.action, earlier.label) != (correction.action, correction.label):
            raise UserError(f"{where} says something else of {row['hash']} than an earlier row; keep one of them.")
    return corrections


def _decision(row: dict[str, str], classes: Collection[str], where: str) -> tuple[str, str]:
    """(the action, the label that it gives or keeps)."""
    action, label = row["action"].strip().lower(), plain_name(row["label"])
    if action not in ACTIONS:
        raise UserError(f"{where} has the action {row['action']!r}; it takes {RELABEL}, {DROP} or {KEEP}.")
    if action == DROP:
        return DROP, ""
    if action == RELABEL and label not in classes:
        close = difflib.get_close_matches(label, sorted(classes), n=1, cutoff=0)
        raise UserError(
            f"{where} has the label {label!r}, which is no class of these pictures; the nearest is {close[0]}."
        )
    return action, label
