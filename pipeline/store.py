"""Content-keyed folders in one cache, each published whole or not at all.

A store is built beside its place, described in `store.json` with every file's size and checksum, and moved
into place by one rename. Whatever could change its content is in its key, so a store is never out of date.
"""

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

DESCRIPTION = "store.json"


def cache_folder() -> Path:
    """Where stores live: `$THAW_CACHE`, else `thaw` in the user's cache folder."""
    chosen = os.environ.get("THAW_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thaw"


def content_key(parts: Mapping[str, Any]) -> str:
    """A short name for whatever `parts` say, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_checksum(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_or_build(kind: str, parts: Mapping[str, Any], build: Callable[[Path], None]) -> tuple[Path, bool]:
    """The store of this `kind` for `parts`, and whether it was there already.

    Where it is not, or is damaged, `build` is given an empty folder to fill. Other processes that want the same
    store wait for this one.
    """
    place = cache_folder() / kind / content_key(parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if is_whole(place):
            return place, True
        shutil.rmtree(place, ignore_errors=True)
        publish(place, parts, build)
    return place, False


def is_whole(folder: Path, contents: bool = False) -> bool:
    """Whether every file named in the folder's description is there in its full size, and, with `contents`,
    with its checksum."""
    try:
        files = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["files"]
        for name, facts in files.items():
            if (folder / name).stat().st_size != facts["bytes"]:
                return False
            if contents and file_checksum(folder / name) != facts["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def describe(folder: Path, parts: Mapping[str, Any]) -> None:
    """Write the folder's description: what it was made from, and its files with sizes and checksums."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != DESCRIPTION
    }
    text = json.dumps({"made_from": parts, "files": files}, indent=2, ensure_ascii=False)
    write_whole(folder / DESCRIPTION, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees either the old content or all of the new."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def publish(place: Path, parts: Mapping[str, Any], build: Callable[[Path], None]) -> None:
    """Let `build` fill a folder, describe it, and put it at `place` in one step."""
    unfinished = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        build(unfinished)
        for path in unfinished.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        describe(unfinished, parts)
        unfinished.chmod(0o755)
        unfinished.rename(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
