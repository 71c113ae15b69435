"""Paths as people and tables write them: through links, with backslashes, as file:// addresses."""

import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from pipeline.data.remote.addresses import is_address, without_secrets
from pipeline.system.errors import UserError

# The source, and the name, of the packaged data set; no other set is called so.
PACKAGED = "elpv"
_FILE = re.compile(r"file:(//(localhost(?=/))?)?", re.IGNORECASE)
_DRIVE = re.compile(r"/?[a-z]:/", re.IGNORECASE)


def as_written(path: Path) -> Path:
    """`path` made absolute, with the links in it kept: what lies beside a link is looked for beside the link."""
    parts = path.expanduser().absolute().parts
    last = max((index + 1 for index, part in enumerate(parts) if part == ".."), default=0)
    # The folder above a link is that of its target, so that up to the last ".." links are followed.
    return Path(*parts[:last]).resolve().joinpath(*parts[last:]) if last else Path(*parts)


def set_name(source: Path) -> str:
    """The name of the pictures at `source`: a folder's, or a table's after that of its folder, since many tables are
    called alike. It is never the packaged set's."""
    path = as_written(source)
    names = (path.name,) if path.is_dir() else (path.parent.name, path.stem)
    name = "-".join(dict.fromkeys(name for name in names if name))
    return f"{name}-pictures" if name.lower() == PACKAGED else name


def without_scheme(text: str) -> str:
    """The path in a file:// address; other text as it is."""
    scheme = _FILE.match(text)
    return unquote(text[scheme.end() :]) if scheme else text


def picture_below(folder: Path, text: str, where: str) -> str:
    """The path below `folder` of the picture that `text` names in a table at `where`; UserError if it is elsewhere."""
    path = without_scheme(text)
    if is_address(path):
        raise UserError(
            f"{where} names {without_secrets(text)}, at an address, and the first row a path on disk; name all "
            "pictures in one way."
        )
    if "\\" in path and not os.path.lexists(folder / path):
        path = path.replace("\\", "/")
    if _DRIVE.match(path) and not os.path.lexists(folder / path):
        raise UserError(f"{where} names {text}, on a drive of Windows; give its path relative to the table's folder.")
    below = _below(os.path.normpath(folder / path), str(folder))
    if below is None:
        raise UserError(f"{where} names {text}, outside the table's folder {folder}; put the table above it.")
    return below if below.isascii() else _as_on_disk(folder, below)


def _below(path: str, folder: str) -> str | None:
    """`path` relative to `folder`, by name or, if links lead there under another name, by what is there."""
    start = folder.rstrip(os.sep) + os.sep
    if path.startswith(start):
        return path[len(start) :]
    parent, name = os.path.split(path)
    inner = _folder_below(parent, folder)
    return None if inner is None else os.path.join(inner, name)


@lru_cache(maxsize=4096)
def _folder_below(parent: str, folder: str) -> str | None:
    try:
        if os.path.samefile(parent, folder):
            return ""
    except OSError:
        pass
    above, name = os.path.split(parent)
    inner = None if above == parent else _folder_below(above, folder)
    return None if inner is None else os.path.join(inner, name)


def _as_on_disk(folder: Path, path: str) -> str:
    """`path` in the Unicode form that the file's name has: macOS writes another one than most programs."""
    forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.lexists(folder / form)), path)
