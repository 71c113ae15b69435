"""Logs the files of a run, reads them back, and tells whether they are still there."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from pipeline.cache.store import DESCRIPTION, MAKE_ROOM, find_damage, open_or_build, size_bytes
from pipeline.system.console import say
from pipeline.system.disk import report_full_disk
from pipeline.system.errors import UserError
from pipeline.tracking.names import first_line
from pipeline.tracking.sender import call_server, enqueue, flush
from pipeline.tracking.storage.download import download, files_of

LARGEST_CHECKED_BYTES = 2**28


def log_folder(run_id: str, folder: Path, name: str | None = None) -> None:
    """Log all files of `folder` as artifacts, in the artifact folder `name` if it is given."""
    enqueue(run_id, "folder", {"place": name}, copied=folder)


@contextmanager
def new_files(run_id: str, name: str | None = None) -> Iterator[Path]:
    """An empty folder; its files at the end of the block are logged as artifacts, in the artifact folder `name` if it
    is given."""
    with TemporaryDirectory() as folder:
        yield Path(folder)
        log_folder(run_id, Path(folder), name)


def log_file(run_id: str, path: Path) -> None:
    """Log a file as an artifact, under its own name."""
    flush(run_id)
    call_server(lambda: MlflowClient().log_artifact(run_id, str(path)))


def log_text(run_id: str, text: str, name: str) -> None:
    """Log `text` as the artifact file `name`."""
    enqueue(run_id, "text", {"text": text, "place": name})


def has_artifact(run_id: str, name: str) -> bool:
    """Whether the run has an artifact file or folder `name`."""
    flush(run_id)
    parent = name.rpartition("/")[0] or None
    return any(item.path == name for item in call_server(lambda: MlflowClient().list_artifacts(run_id, parent)))


def artifact(run_id: str, name: str) -> Path:
    """A local copy of a finished run's artifact file or folder `name`; UserError if it is gone.

    Artifacts on this machine are read where they lie; others are fetched once and kept in the cache.
    """
    flush(run_id)
    local = call_server(lambda: local_artifacts(run_id))
    if local is not None and (local / name).exists():
        return local / name

    def fetch(folder: Path) -> None:
        try:
            with report_full_disk("a run's fetched artifacts", folder.parent, MAKE_ROOM):
                download(run_id, name, folder)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"The artifact {name} of run {run_id} cannot be fetched ({first_line(error)}); run that stage again."
            ) from None

    return open_or_build("artifacts", {"run_id": run_id, "place": name}, fetch)[0] / name


def local_artifacts(run_id: str) -> Path | None:
    """The folder of the run's artifacts if it is on this machine; else None."""
    uri = MlflowClient().get_run(run_id).info.artifact_uri
    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None  # type: ignore[no-untyped-call]


def list_files(run_id: str, names: Sequence[str]) -> str:
    """All files of these artifacts, with their sizes, as JSON."""
    return json.dumps(dict(files_of(run_id, names)))


def is_whole(run_id: str, names: Sequence[str], listed: str | None) -> bool:
    """Whether a run still has these artifacts, undamaged, and all files that `list_files` has listed."""
    expected = json.loads(listed) if listed else {}
    names = sorted({*names, *(path.partition("/")[0] for path in expected)})
    there = dict(files_of(run_id, names))
    is_complete = all(path in there and there[path] in (None, size) for path, size in expected.items())
    is_there = {path.partition("/")[0] for path in there}.issuperset(names)
    return is_complete and is_there and not _is_damaged(run_id, names)


def _is_damaged(run_id: str, names: Sequence[str]) -> bool:
    """Whether artifacts that lie on this machine, and have checksums, have changed."""
    folder = local_artifacts(run_id)
    for name in names if folder is not None else ():
        described = Path(str(folder)) / name
        if (described / DESCRIPTION).exists():
            damage = find_damage(described, contents=size_bytes(described) <= LARGEST_CHECKED_BYTES)
            if damage:
                say(f"run {run_id} is not reused: its {name} is damaged ({damage})")
                return True
    return False
