"""Walks folders of pictures: which files are pictures, which are set aside, and what cannot be read."""

import os
import stat
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from pipeline.data.readers.junk import is_left_out
from pipeline.system.errors import UserError

# Files or folders with the reason why they are no pictures: (path, reason).
SetAside: TypeAlias = list[tuple[str, str]]
_Kind: TypeAlias = Literal["picture", "unreadable", "other"]


@dataclass
class Found:
    """Paths below the tree's root, sorted: `pictures`, what is `unreadable`, and `others`, both with the reason."""

    pictures: list[str] = field(default_factory=list)
    unreadable: SetAside = field(default_factory=list)
    others: SetAside = field(default_factory=list)


@dataclass(frozen=True)
class Tree:
    """The folder `root`, in which files that end in one of `extensions` (lower case; None for any) are pictures.

    Links are followed. Hidden files and folders, and those that systems leave behind, are left out.
    """

    root: Path
    extensions: Collection[str] | None

    def top(self, below: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in a folder, not below it, sorted; UserError if it cannot be read."""
        folders: list[str] = []
        files: list[str] = []
        try:
            for entry in os.scandir(self.root / below):
                if not is_left_out(entry.name):
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            raise cannot_be_read(self.root / below, error.strerror or str(error)) from None
        return sorted(folders), sorted(files)

    def find(self, below: str) -> Found:
        """All that is in a folder, at any depth; each folder in it is listed once, so that loops of links end."""
        found = Found()
        for kind, path, reason in self._walk(below):
            if kind == "picture":
                found.pictures.append(path)
            else:
                (found.unreadable if kind == "unreadable" else found.others).append((path, reason))
        return Found(sorted(found.pictures), sorted(found.unreadable), sorted(found.others))

    def is_full(self, below: str) -> bool:
        """Whether there is a picture in a folder, at any depth, or may be, since some of it cannot be read."""
        return any(kind != "other" for kind, _, _ in self._walk(below))

    def full_folders(self, below: str) -> Iterator[str]:
        """The folders in a folder that are full, by name."""
        return (name for name in self.top(below)[0] if self.is_full(join(below, name)))

    def has_pictures_itself(self, below: str) -> bool:
        """Whether there is a picture in a folder that is in no folder below it, or may be."""
        try:
            entries = os.scandir(self.root / below)
            return any(
                not is_left_out(entry.name) and not _is_folder(entry) and not self._not_a_picture(entry)
                for entry in entries
            )
        except OSError:
            return True

    def _walk(self, below: str) -> Iterator[tuple[_Kind, str, str]]:
        """(kind, path, reason) of the files in a folder, and of folders that are not listed."""
        seen: set[tuple[int, int]] = set()
        folders, links = [below], deque[str]()
        while folders or links:
            # Links come last, so that a folder is listed under its own name, and a link to it adds nothing.
            folder = folders.pop() if folders else links.popleft()
            try:
                status = os.stat(self.root / folder)
                entries = list(os.scandir(self.root / folder)) if (status.st_dev, status.st_ino) not in seen else None
            except OSError as error:
                yield "unreadable", folder, f"cannot be read: {error.strerror}"
                continue
            if entries is None:
                yield "other", folder, "is a link to a folder of the same class"
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                if is_left_out(entry.name):
                    continue
                path = join(folder, entry.name)
                if _is_folder(entry):
                    links.append(path) if entry.is_symlink() else folders.append(path)
                elif not _is_text(entry.path) and self._has_ending(entry.name):
                    yield "unreadable", path, "its name is not UTF-8"
                else:
                    reason = self._not_a_picture(entry)
                    yield "other" if reason else "picture", path, reason
            links = deque(sorted(links))

    def _not_a_picture(self, entry: "os.DirEntry[str]") -> str:
        """The reason why a file is no picture, or "". A broken link counts as a picture, which cannot be read."""
        if not self._has_ending(entry.name):
            return f"{os.path.splitext(entry.name)[1] or 'no ending'} is not in data.extensions"
        is_file = os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()
        if not is_file and os.path.exists(entry.path):
            return "is no file but a " + _kind_of(entry)
        return ""

    def _has_ending(self, name: str) -> bool:
        return self.extensions is None or os.path.splitext(name)[1].lower() in self.extensions


def join(below: str, name: str) -> str:
    """The path of `name` in a folder below the root, which itself is ""."""
    return f"{below}/{name}" if below else name


def cannot_be_read(folder: Path, reason: str) -> UserError:
    """The error for a folder that is needed."""
    return UserError(
        f"The folder {shown(str(folder))} cannot be read ({reason}); allow it to be read, or leave it out."
    )


def shown(path: str) -> str:
    """`path` as text that can be printed, whatever bytes are in its name."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _kind_of(entry: "os.DirEntry[str]") -> str:
    mode = entry.stat().st_mode
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _is_text(path: str) -> bool:
    return path.isascii() or path.encode(errors="replace").decode() == path
