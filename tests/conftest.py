"""Fixtures of all tests: a cache for each test, and a tracking database for each that asks for one."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from xdist.scheduler import LoadScopeScheduling

from pipeline.cache.markers import leave
from pipeline.data import decode

# As the commands do: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
# Tensors as small as those of tests are slower on two threads, here and in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


gc.disable()


def pytest_collection_finish() -> None:
    """What is loaded by then stays: the garbage collector need not go through it, then or later."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of stages first, which take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/stages/"))


# Whole commands, which share a trained recipe; and tests that look at every `mlflow run` on the machine, and must not
# find those of other tests.
ONE_AFTER_THE_OTHER = (
    "tests/stages/commands/", "tests/pipeline/system/test_processes.py", "tests/pipeline/tracking/test_abandoned.py",
)  # fmt: skip
# Stages in the test's own process, which share a chain of runs; but for tests that run no stage.
SHARE_A_CHAIN = "tests/stages/"
BY_THEMSELVES = tuple(f"tests/stages/test_{name}.py" for name in ("command_line", "mistakes_at_once", "registry"))


class ByFile(LoadScopeScheduling):
    """With several workers, all tests of a file run in one of them, since they share expensive fixtures."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith(ONE_AFTER_THE_OTHER):
            return "one after the other"
        return "a chain" if file.startswith(SHARE_A_CHAIN) and not file.startswith(BY_THEMSELVES) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "cache"
    monkeypatch.setenv("THAW_CACHE", str(folder))
    yield folder
    leave()


@pytest.fixture(scope="session", autouse=True)
def without_matrix_units() -> Iterator[None]:
    """As if the processor had none: within the tests' own process networks are trained in float32 on every machine,
    where a test does not name bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.system.device.has_matrix_units", lambda: False)
        yield


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the package for HEIC were not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    Image.init()
    with monkeypatch.context() as patch:
        patch.delitem(Image.OPEN, "HEIF", raising=False)
        patch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
        decode._formats.cache_clear()
        yield
    decode._formats.cache_clear()


@pytest.fixture
def small_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 4 MiB with the test's cache on it."""
    disk = cache.parent / "small disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: it takes root")
    monkeypatch.setenv("THAW_CACHE", str(disk / "cache"))
    yield disk
    leave()
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables, to be copied, since creating it takes a second."""
    import mlflow

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking_server(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty tracking database; artifacts are stored beside it, in the test's folder."""
    import mlflow

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    experiment = mlflow.MlflowClient(uri).create_experiment("test", artifact_location=str(tmp_path / "artifacts"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
