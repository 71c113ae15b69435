"""The cache's folder: where it is, whether it can be written, and how several users share it.

A cache whose folder others may write into, by its group or all, is shared: whatever is made in it may be written by
the same users.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.system.errors import UserError

_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP)
_ADVICE = "set THAW_CACHE to a folder that you can write"


def cache_folder() -> Path:
    """The folder of all stores: `$THAW_CACHE`, else `thaw` in the user's cache folder."""
    chosen = os.environ.get("THAW_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thaw"
    except RuntimeError:
        raise UserError(f"The cache has no place, since your home folder is not known here; {_ADVICE}.") from None


def check_cache() -> None:
    """Make the cache's folder; UserError if it, or a folder in it, cannot be written."""
    cache = cache_folder()
    with report_unwritable():
        make_folder(cache)
        probe = cache / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        for folder in cache.iterdir():
            if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


@contextmanager
def report_unwritable() -> Iterator[None]:
    """Turns an error that says that something in the cache cannot be written into a UserError of one sentence."""
    try:
        yield
    except OSError as error:
        cache = Path(os.path.abspath(cache_folder()))
        named = [Path(os.path.abspath(name)) for name in (error.filename, error.filename2) if isinstance(name, str)]
        is_in_cache = any(path.is_relative_to(cache) or cache.is_relative_to(path) for path in named)
        if error.errno not in _UNWRITABLE or not is_in_cache:
            raise
        raise UserError(
            f"The cache {cache} cannot be written ({error.strerror}: {named[0]}); {_ADVICE}, or have its owner share "
            "it (chmod -R g+w)."
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if need be; what is made in a shared cache is shared."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        share(path)


def share(path: Path) -> None:
    """Let those who may write into the cache's folder write this file or folder in it too."""
    cache = cache_folder()
    if not path.is_relative_to(cache) or path == cache:
        return
    with suppress(OSError):  # it is of another user, who shares it
        of_cache = cache.stat()
        writers = of_cache.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not writers:
            return
        own = path.stat()
        if writers & stat.S_IWGRP and own.st_gid != of_cache.st_gid:
            with suppress(OSError):  # only a member of that group may
                os.chown(path, -1, of_cache.st_gid)
        readers = writers << 1
        path.chmod(stat.S_IMODE(own.st_mode) | writers | readers | (writers >> 1 if path.is_dir() else 0))


def shared_lock(path: Path, **options: Any) -> FileLock:
    """The lock of a file in the cache, which is made if need be."""
    with report_unwritable():
        make_folder(path.parent)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
            share(path)
    return FileLock(path, **options)
