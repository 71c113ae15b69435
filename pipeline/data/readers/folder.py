"""Lists the pictures of a folder: class folders, maybe within split folders; or any folder of pictures."""

import os
import stat
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.data.readers.listing import Listing
from pipeline.data.readers.paths import set_name
from pipeline.data.readers.split_names import WORDS as SPLITS
from pipeline.system.errors import UserError

# Files that are left out: (path, reason).
SetAside = list[tuple[str, str]]


def list_folder(root: Path, extensions: Collection[str]) -> Listing:
    """The files below `root` that end in one of `extensions` (lower case), by class folder, sorted by path.

    Links are followed, but to each folder once for a class, so that loops end. Hidden files and folders are left out.
    UserError for a class folder without pictures, and for split folders that contradict each other.
    """
    folders, files = _top(root, "")
    parents = _split_folders(root, folders)
    set_aside: SetAside = [(_text(name), "lies outside the class folders") for name in files]
    if parents:
        set_aside += [(_text(name), "lies beside the split folders") for name in folders if name not in parents]
    paths: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    for parent, split in (parents or {"": ""}).items():
        class_folders, strays = _top(root, parent) if parent else (folders, [])
        set_aside += [(_text(f"{parent}/{name}"), "lies outside the class folders") for name in strays]
        for label in class_folders:
            below = f"{parent}/{label}" if parent else label
            found, others = _pictures(root, below, extensions)
            set_aside += others
            if not found:
                raise UserError(
                    f"The class {_text(label)} has no picture: {_text(str(root / below))} holds none that ends in "
                    f"{', '.join(sorted(extensions))}; add some, or remove the folder."
                )
            paths += found
            labels += [label] * len(found)
            splits += [split] * len(found)
    return Listing(set_name(root), root, paths, labels, splits if parents else None, set_aside)


def list_pictures(data: str, extensions: Sequence[str]) -> tuple[Path, list[Path]]:
    """The folder `data`, and all files at any depth below it that end in one of `extensions`, sorted, without hidden
    ones. UserError if there is no such folder or no picture in it."""
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


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """The split folders with the names of their splits; empty if there are none."""
    found = {folder: SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS}
    given = list(found.values())
    if "train" not in given:
        if given and len(found) == len(folders):
            raise UserError(f"{root} has a folder {min(found)}/ but none called train/; add one, or rename that.")
        return {}
    if len(given) != len(set(given)):
        raise UserError(f"{root} has two folders for the same split, such as valid/ and val/; keep one of them.")
    return found


def _top(root: Path, below: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, not below it, sorted, without hidden ones."""
    try:
        entries = sorted(path for path in (root / below).iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {root / below} cannot be read ({error.strerror}).") from None
    return [path.name for path in entries if path.is_dir()], [path.name for path in entries if not path.is_dir()]


def _pictures(root: Path, class_folder: str, extensions: Collection[str]) -> tuple[list[str], SetAside]:
    """Files at any depth of a class folder, as paths below `root`: (pictures, others with the reason), both sorted."""
    found: list[str] = []
    others: SetAside = []
    seen: set[tuple[int, int]] = set()
    folders, links = [class_folder], deque[str]()
    while folders or links:
        # Links come last, so that a folder is listed under its own name, and a link to it adds nothing.
        folder = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(root / folder)
            entries = list(os.scandir(root / folder)) if (status.st_dev, status.st_ino) not in seen else None
        except OSError as error:
            others.append((_text(folder), f"cannot be read: {error.strerror}"))
            continue
        if entries is None:
            others.append((_text(folder), "is a link to a folder of the same class"))
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{folder}/{entry.name}"
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                links.append(path) if entry.is_symlink() else folders.append(path)
                continue
            reason = _not_a_picture(entry, extensions)
            if reason:
                others.append((_text(path), reason))
            else:
                found.append(path)
        links = deque(sorted(links))
    return sorted(found), sorted(others)


def _not_a_picture(entry: "os.DirEntry[str]", extensions: Collection[str]) -> str:
    """The reason why a file is not a picture, or "". A broken link counts as a picture, which cannot be read."""
    if not _is_text(entry.path):
        return "its name is not UTF-8"
    ending = os.path.splitext(entry.name)[1]
    if ending.lower() not in extensions:
        return f"{ending or 'no ending'} is not in data.extensions"
    is_file = os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()
    if not is_file and os.path.exists(entry.path):
        return "is no file but a " + _kind(entry)
    return ""


def _kind(entry: "os.DirEntry[str]") -> str:
    mode = entry.stat().st_mode
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _is_text(path: str) -> bool:
    return path.isascii() or path.encode(errors="replace").decode() == path


def _text(path: str) -> str:
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _is_picture(name: str, extensions: Sequence[str]) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in extensions
