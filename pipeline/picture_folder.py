"""Where pictures to be predicted lie, and where their table goes; nothing is opened, so a mistake is told at once."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError

FORMATS = (".csv", ".parquet")


def list_pictures(data: str, extensions: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder `data`, and all files at any depth below it that end like pictures, sorted; hidden ones are left
    out. UserError if there is no such folder or no picture in it."""
    root = Path(data).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(f"data is {data}, which {what} (looked for in {Path.cwd()}); name a folder of pictures.")
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if _is_picture(name, extensions)]
    if not found:
        raise UserError(
            f"data is {data}, where no file, at any depth, ends in {', '.join(extensions)}; name a folder of pictures."
        )
    return root, sorted(found)


def check_output(output: str) -> Path:
    """Where to write the table; UserError for another ending than .csv or .parquet, or where there is no folder."""
    path = Path(output).expanduser()
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"output is {output}, which ends neither in .csv nor in .parquet; name such a file.")
    if not path.parent.is_dir():
        raise UserError(f"output is {output}, but there is no folder {path.parent.resolve()}; make it first.")
    return path


def _is_picture(name: str, extensions: Sequence[str]) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in extensions
