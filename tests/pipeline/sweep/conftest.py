"""A storage of studies for each test that asks for one."""

import shutil
from pathlib import Path

import pytest

from pipeline.sweep.study import open_storage


@pytest.fixture(scope="session")
def empty_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with its tables, to be copied, since creating these takes half a second."""
    path = tmp_path_factory.mktemp("storage") / "sweeps.db"
    open_storage(f"sqlite:///{path}", 20, make_tables=True)
    return path


@pytest.fixture
def url(tmp_path: Path, empty_storage: Path) -> str:
    """The address of an empty storage."""
    shutil.copy(empty_storage, tmp_path / "sweeps.db")
    return f"sqlite:///{tmp_path}/sweeps.db"
