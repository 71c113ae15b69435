"""Reports a full disk in one sentence, counts free bytes, and finds out whether a file can be written."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.filesize import decimal

from pipeline.system.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Messages of libraries that raise errors of their own for a full disk, such as safetensors and SQLite.
_MESSAGES = (
    *(f"(os error {number})" for number in _FULL),
    *(f"[Errno {number}]" for number in _FULL),  # shutil's list of files that could not be copied
    "database or disk is full",
)


@contextmanager
def report_full_disk(what: str, folder: Path | None = None, advice: str = "") -> Iterator[None]:
    """Turns any error that a full disk or quota raises in the block into a UserError of one sentence.

    `what` is being written into `folder`, such as "the pixel store"; `advice` says how to make room there. If the
    error names a file on another disk, that disk is reported. Without a `folder`, it is the fuller of the folder for
    temporary files and the working folder.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = _find_full(error)
        if full is None:
            raise
        named = _named_folder(full)
        if folder is None or (named and not named.is_relative_to(folder.absolute())):
            folder = named or min(Path(tempfile.gettempdir()), Path.cwd(), key=free_bytes)
            advice = ""
        raise UserError(_sentence(what, folder, advice or _advice(folder), full)) from error


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def check_writable(file: Path) -> None:
    """Raises OSError if `file` cannot be written, or replaced, whether it is there or not; it is left as it is."""
    target = file.resolve()
    if target.exists():
        target.open("ab").close()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".thaw-"):
        pass


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path beside `file` to be written within the block, which then takes its place; it is removed on an error."""
    target = file.resolve()
    beside = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield beside
        beside.replace(target)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _find_full(error: BaseException | None) -> BaseException | None:
    """The error that reports a full disk: this one, or one that it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        if any(message in str(error) for message in _MESSAGES):
            return error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _named_folder(full: BaseException) -> Path | None:
    """The folder of the file that the error names, if it names one."""
    named = getattr(full, "filename", None)
    return Path(named).absolute().parent if isinstance(named, str | os.PathLike) else None


def _advice(folder: Path) -> str:
    if folder.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        return "free some there or point TMPDIR to a larger disk"
    return "free some there"


def _sentence(what: str, folder: Path, advice: str, full: BaseException) -> str:
    needed = getattr(full, "needed_bytes", None)
    room = f"{decimal(free_bytes(folder))} free"
    if needed is not None:
        room = f"{decimal(needed)} needed, {room}"
    why = "The quota is used up on" if getattr(full, "errno", None) == errno.EDQUOT else "No space left on"
    return (
        f"{why} the disk of {folder} while writing {what} ({room}); {advice}, and run the same command again: it "
        "resumes from there."
    )


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
