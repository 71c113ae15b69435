"""A folder of the leader's for all processes: machines that share no disk get a copy into their own cache, once."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from pipeline.cache.hashing import file_checksum
from pipeline.cache.location import cache_folder, make_folder
from pipeline.cache.store import DESCRIPTION, open_or_build
from pipeline.ranks.exchange import PIECE_BYTES, ask_all

KIND = "received"


def provide(folder: Path) -> Path:
    """The leader's `folder` on this machine: itself where this process uses the leader's cache, and so sees its disk,
    or else a copy in its own cache. All processes call it; the leader's argument counts."""
    number = dist.get_rank()
    with _seen(folder) as (folder, sees):
        answers = ask_all((socket.gethostname(), str(cache_folder()), sees))
    if all(sees for _, _, sees in answers):
        return folder
    sent: list[Any] = [_listed(folder) if number == 0 else None]
    dist.broadcast_object_list(sent, src=0)
    store = cache_folder() / KIND
    made_from = {"files": sent[0]}
    # One process of each cache writes.
    lacking = {answer[:2]: other for other, answer in reversed(list(enumerate(answers))) if not answer[2]}
    is_writer = number in lacking.values()
    wants = is_writer and not _is_there(made_from)
    if any(ask_all(wants)):
        make_folder(store)
        with TemporaryDirectory(dir=store, prefix=".") as temporary:
            _broadcast_files(folder, sent[0], Path(temporary) if wants else None)
            if wants:
                open_or_build(KIND, made_from, lambda unfinished: _move(Path(temporary), unfinished))
    ask_all(None)  # from here on the copies are there
    return folder if answers[number][2] else open_or_build(KIND, made_from, lambda unfinished: None)[0]


@contextmanager
def _seen(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(The leader's folder, whether this process sees it), by a file that the leader makes in its cache."""
    own: list[Any] = [(str(folder), f".seen-{uuid4().hex}")]
    token = cache_folder() / own[0][1]
    if dist.get_rank() == 0:
        make_folder(token.parent)
        token.touch()
    try:
        dist.broadcast_object_list(own, src=0)
        path, name = Path(own[0][0]), own[0][1]
        yield path, (cache_folder() / name).exists() and path.is_dir()
    finally:
        token.unlink(missing_ok=True)


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The folder's files by name, with sizes and checksums, which a store has in its description."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DESCRIPTION)
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_checksum(path)} for path in files
    }


def _is_there(made_from: dict[str, Any]) -> bool:
    class _Missing(Exception):
        pass

    def refuse(unfinished: Path) -> None:
        raise _Missing

    try:
        open_or_build(KIND, made_from, refuse)
    except _Missing:
        return False
    return True


def _broadcast_files(folder: Path, files: dict[str, dict[str, Any]], target: Path | None) -> None:
    """Send all files from the leader's folder; they are written into `target`, where there is one."""
    is_leader = dist.get_rank() == 0
    for name, facts in files.items():
        left, path = int(facts["bytes"]), None if target is None else target / name
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        source = (folder / name).open("rb") if is_leader else None
        while left:
            piece = torch.empty(min(left, PIECE_BYTES), dtype=torch.uint8)
            if source is not None and source.readinto(piece.numpy().data) != len(piece):
                raise OSError(f"{folder / name} has become shorter")
            dist.broadcast(piece, 0)
            if path is not None:
                with path.open("ab") as file:
                    file.write(piece.numpy().data)
            left -= len(piece)
        if source is not None:
            source.close()


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)
