"""Brings files of a run to this machine, each whole or not at all, through whatever the store does meanwhile.

MLflow's own download of a folder starts anew at the first file that breaks off, and does not say why it broke off.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from pipeline.system.parallel import in_parallel
from pipeline.tracking.sender import call_server

FILES_AT_ONCE = 4


def download(run_id: str, name: str, folder: Path) -> None:
    """Bring the run's artifact file or folder `name` into `folder`, with the folders that it lies in. What breaks off
    is tried again, file by file, as long as `call_server` waits. OSError or MlflowException if it cannot be had."""
    client = MlflowClient()
    files = call_server(lambda: list(files_of(run_id, [name], name.rpartition("/")[0] or None)))
    if not files:
        raise FileNotFoundError("there is no such file any more")
    repository = get_artifact_repository(call_server(lambda: client.get_run(run_id)).info.artifact_uri)

    def bring(file: tuple[str, int | None]) -> None:
        path, size_bytes = file
        target = folder / path
        if not target.resolve().is_relative_to(folder.resolve()):
            raise FileNotFoundError(f"{path} lies outside its folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        call_server(lambda: _bring_whole(repository, path, target, size_bytes))

    for _ in in_parallel(bring, files, workers=FILES_AT_ONCE):
        pass


def files_of(run_id: str, names: Collection[str], parent: str | None = None) -> Iterator[tuple[str, int | None]]:
    """The path and size of each file of these artifacts, which lie in the artifact folder `parent`; some servers do not
    know sizes."""
    client = MlflowClient()
    waiting = [item for item in client.list_artifacts(run_id, parent) if item.path in names]
    while waiting:
        item = waiting.pop()
        if item.is_dir:
            waiting += client.list_artifacts(run_id, item.path)
        else:
            yield item.path, item.file_size


def _bring_whole(repository: Any, path: str, target: Path, size_bytes: int | None) -> None:
    repository._download_file(path, str(target))
    came_bytes = target.stat().st_size
    if size_bytes not in (None, came_bytes):
        raise ConnectionError(f"only {came_bytes:,} of the {size_bytes:,} bytes of {path} came")
