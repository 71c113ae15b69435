"""What was logged and is not yet at the server: for each run a folder of numbered entries in the cache.

An entry is a small JSON file, published by a rename and deleted once the server has taken it, so that a process that
is killed loses nothing. Sending one twice does no harm: the server keeps one of two equal points.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pipeline.cache.location import cache_folder, make_folder, report_unwritable
from pipeline.system.processes import identity, is_alive
from pipeline.tracking.server import absolute

WRITER = "writer.json"
REFUSED = "refused"
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
TAGS_PER_CALL = 100
VALUES_PER_CALL = 1000


Part: TypeAlias = tuple[str, Any]  # the kind of value, and the value; or "file", and its name


@dataclass(frozen=True)
class Entry:
    """Something to log to a run: `values` (metrics, params, tags), a `text` or a `folder` of artifacts, or a
    `status`."""

    number: int
    kind: str
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its file's name, in the order of writing."""
        return f"{self.number:08d}"


class Outbox:
    """The entries of one run on disk, for one process at a time: see `lock`."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.folder = outbox_folder() / run_id
        self._last = 0

    def next_number(self) -> int:
        """A number that no entry has had."""
        self._last += 1
        return self._last

    def write(self, entry: Entry, copied: Path | None = None) -> None:
        """Keep an entry, and for a folder of artifacts a copy of it."""
        if copied is not None:
            try:
                shutil.copytree(copied, self.folder / entry.name, copy_function=_link_or_copy)
            except OSError:  # half a copy must not keep a full disk full
                shutil.rmtree(self.folder / entry.name, ignore_errors=True)
                raise
        text = json.dumps({"kind": entry.kind, "content": entry.content})
        unfinished = self.folder / f".{entry.name}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.folder / f"{entry.name}.json")

    def read(self) -> list[Entry]:
        """All entries, in order; one that cannot be read is set aside."""
        entries = []
        for number, path in sorted(self._files()):
            try:
                entry = json.loads(path.read_text(encoding="utf-8"))
                entries.append(Entry(number, entry["kind"], entry["content"]))
            except (ValueError, KeyError, TypeError):
                self.set_aside(Entry(number, "unreadable", {}))
        return entries

    def remove(self, entry: Entry) -> None:
        """Remove an entry that the server has taken."""
        (self.folder / f"{entry.name}.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / entry.name, ignore_errors=True)

    def parts(self, entry: Entry) -> list[Part]:
        """What an entry consists of that the server may take one by one: its values, or the files of its folder."""
        if entry.kind == "folder":
            folder = self.folder / entry.name
            return [
                ("file", path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*")) if path.is_file()
            ]
        content = entry.content if entry.kind == "values" else {}
        points: list[Part] = [("metrics", point) for point in content.get("metrics", ())]
        return points + [(kind, item) for kind in ("params", "tags") for item in content.get(kind, {}).items()]

    def set_aside(self, entry: Entry, parts: Sequence[Part] | None = None) -> Path:
        """Move an entry that the server refuses, or only these `parts` of it, into a folder of its own; gives its new
        path."""
        refused = self.folder / REFUSED
        refused.mkdir(exist_ok=True)
        if parts is not None and entry.kind == "values":
            self.write(Entry(entry.number, "values", _content(parts)))
        elif parts is not None:
            for part in self.parts(entry):
                if part not in parts:
                    (self.folder / entry.name / part[1]).unlink()
        for name in (f"{entry.name}.json", entry.name):
            if (self.folder / name).exists():
                (self.folder / name).replace(refused / name)
        return refused / f"{entry.name}.json"

    def take_back_refused(self) -> None:
        """Have entries that were set aside sent once more."""
        for path in (self.folder / REFUSED).glob("*"):
            path.replace(self.folder / path.name)

    def give_up_refused(self) -> Path:
        """Have entries that were set aside never sent again, but kept; gives the folder that they are in."""
        kept = outbox_folder() / REFUSED / self.run_id
        for path in (self.folder / REFUSED).glob("*"):
            kept.mkdir(parents=True, exist_ok=True)
            path.replace(kept / path.name)
        return kept

    def send_parts(self, client: MlflowClient, entry: Entry, parts: Sequence[Part]) -> None:
        """Send these parts of one entry to the server."""
        if entry.kind == "values":
            self.send(client, [Entry(entry.number, "values", _content(parts))])
            return
        for _, name in parts:
            place = PurePosixPath(entry.content["place"] or "", name).parent.as_posix()
            file = self.folder / entry.name / name
            client.log_artifact(self.run_id, str(file), None if place == "." else place)

    def send(self, client: MlflowClient, group: list[Entry]) -> None:
        """Send one entry, or several of values in one call, to the server."""
        first = group[0].content
        if group[0].kind == "values":
            points = [point for entry in group for point in entry.content.get("metrics", ())]
            params = {key: value for entry in group for key, value in entry.content.get("params", {}).items()}
            tags = {key: value for entry in group for key, value in entry.content.get("tags", {}).items()}
            client.log_batch(
                self.run_id,
                metrics=[Metric(name, value, time_ms, step) for name, value, time_ms, step in points],
                params=[Param(key, _storable(value)) for key, value in params.items()],
                tags=[RunTag(key, _storable(value)) for key, value in tags.items()],
            )
        elif group[0].kind == "text":
            client.log_text(self.run_id, _storable(first["text"]), first["place"])
        elif group[0].kind == "folder":
            client.log_artifacts(self.run_id, str(self.folder / group[0].name), first["place"])
        else:
            client.set_terminated(self.run_id, first["status"], first["end_time_ms"])

    @contextmanager
    def lock(self, uri: str, wait_seconds: float = 0.0) -> Iterator[None]:
        """Lock the outbox for this process; it is removed at the end if it is empty.

        Raises filelock.Timeout if another process has it for longer than `wait_seconds`.
        """
        with report_unwritable():
            make_folder(self.folder.parent)
        with FileLock(self.folder.with_suffix(".lock"), timeout=wait_seconds, thread_local=False):
            self.folder.mkdir(exist_ok=True)
            self._tidy()
            facts = {"uri": absolute(uri), "host": socket.gethostname()}
            self._write_writer(facts | {"process": identity()})
            try:
                yield
            finally:
                if self.is_empty():
                    shutil.rmtree(self.folder, ignore_errors=True)
                    self.folder.with_suffix(".lock").unlink(missing_ok=True)
                else:
                    self._write_writer(facts)

    def is_empty(self) -> bool:
        """Whether nothing waits to be sent, and nothing was refused."""
        return not any(self._files()) and not any((self.folder / REFUSED).glob("*"))

    def writer(self) -> dict[str, Any]:
        """Whose entries these are: `uri` of the server, `host`, and the `process` that may still write."""
        try:
            return dict(json.loads((self.folder / WRITER).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def is_in_use(self) -> bool:
        """Whether a process on this machine that writes into it is alive."""
        process = self.writer().get("process")
        return process is not None and is_alive(process) is True

    def _write_writer(self, facts: Mapping[str, Any]) -> None:
        unfinished = self.folder / f".{WRITER}"
        unfinished.write_text(json.dumps(facts), encoding="utf-8")
        unfinished.replace(self.folder / WRITER)

    def _tidy(self) -> None:
        """Remove what a process that was killed had half written, and continue the numbers of the entries."""
        whole = {path.stem for _, path in self._files()}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in (REFUSED, *whole):
                shutil.rmtree(path)
        refused = (path.stem for path in (self.folder / REFUSED).glob("*.json"))
        self._last = max((int(name) for name in (*whole, *refused)), default=0)

    def _files(self) -> Iterator[tuple[int, Path]]:
        for path in self.folder.glob("[0-9]*.json"):
            yield int(path.stem), path


def outbox_folder() -> Path:
    """The folder of the outboxes of all runs."""
    return cache_folder() / "outbox"


def first_group(entries: Iterable[Entry]) -> list[Entry]:
    """The entries from the first one on that can be sent in one call, in order."""
    group: list[Entry] = []
    set_before: set[tuple[str, str]] = set()
    counts = {"metrics": 0, "params": 0, "tags": 0}
    limits = {"metrics": METRICS_PER_CALL, "params": PARAMS_PER_CALL, "tags": TAGS_PER_CALL}
    for entry in entries:
        if entry.kind != "values":
            return group or [entry]
        keys = {(kind, key) for kind in ("params", "tags") for key in entry.content.get(kind, ())}
        counts = {kind: count + len(entry.content.get(kind, ())) for kind, count in counts.items()}
        full = sum(counts.values()) > VALUES_PER_CALL or any(counts[kind] > limits[kind] for kind in counts)
        if group and (full or keys & set_before):
            return group
        group.append(entry)
        set_before |= keys
    return group


def _content(parts: Sequence[Part]) -> dict[str, Any]:
    """The content of an entry of these values."""
    points = [item for kind, item in parts if kind == "metrics"]
    return {"metrics": points} | {
        name: dict(item for kind, item in parts if kind == name) for name in ("params", "tags")
    }


def _storable(text: str) -> str:
    """`text` without what a database or a file of text cannot hold, escaped: names of files in another encoding."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _link_or_copy(source: str, target: str) -> str:
    """Link what lies in a store, since stores never change once they are published; copy all else."""
    if Path(source).resolve().is_relative_to(cache_folder().resolve()):
        try:
            os.link(source, target)
            return target
        except OSError:
            pass
    return str(shutil.copy2(source, target))
