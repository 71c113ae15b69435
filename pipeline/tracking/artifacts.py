"""The files of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from pipeline.cache.store import MAKE_ROOM, open_or_build
from pipeline.system.disk import report_full_disk
from pipeline.system.errors import UserError
from pipeline.tracking.names import first_line
from pipeline.tracking.sender import call_server, enqueue, flush


def log_folder(run_id: str, folder: Path, place: str | None = None) -> None:
    """Keep all files of `folder` as artifacts, below `place`."""
    enqueue(run_id, "folder", {"place": place}, copied=folder)


@contextmanager
def new_files(run_id: str, place: str | None = None) -> Iterator[Path]:
    """An empty folder; what lies in it at the end of the block is logged as artifacts, below `place`."""
    with TemporaryDirectory() as folder:
        yield Path(folder)
        log_folder(run_id, Path(folder), place)


def log_file(run_id: str, path: Path) -> None:
    """Keep a file as an artifact, under its own name."""
    flush(run_id)
    call_server(lambda: MlflowClient().log_artifact(run_id, str(path)))


def log_text(run_id: str, text: str, place: str) -> None:
    """Keep `text` as the artifact file `place`."""
    enqueue(run_id, "text", {"text": text, "place": place})


def has_artifact(run_id: str, place: str) -> bool:
    """Whether the run has a file or folder `place`."""
    flush(run_id)
    parent = place.rpartition("/")[0] or None
    return any(item.path == place for item in call_server(lambda: MlflowClient().list_artifacts(run_id, parent)))


def artifact(run_id: str, place: str) -> Path:
    """A local copy of a finished run's artifact file or folder `place`; UserError if it is gone.

    Artifacts on this machine are read where they lie; others are fetched once and kept in the cache.
    """
    flush(run_id)
    local = call_server(lambda: local_artifacts(run_id))
    if local is not None and (local / place).exists():
        return local / place

    def fetch(folder: Path) -> None:
        try:
            with report_full_disk("a run's fetched artifacts", folder.parent, MAKE_ROOM):
                fetched = Path(call_server(lambda: MlflowClient().download_artifacts(run_id, place, str(folder))))
                if fetched != folder / place:  # what lies deeper comes under its last name alone
                    (folder / place).parent.mkdir(parents=True, exist_ok=True)
                    fetched.rename(folder / place)
        except (MlflowException, OSError) as error:
            raise UserError(
                f"The artifact {place} of run {run_id} cannot be had ({first_line(error)}); run that stage again."
            ) from None

    return open_or_build("artifacts", {"run_id": run_id, "place": place}, fetch)[0] / place


def local_artifacts(run_id: str) -> Path | None:
    """Where the run's artifacts lie, if they lie on this machine; else None."""
    uri = MlflowClient().get_run(run_id).info.artifact_uri
    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None  # type: ignore[no-untyped-call]
