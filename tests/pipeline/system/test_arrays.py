import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.system.arrays import MappedRows, allocate_array, release_pages

ROW_BYTES = 4096
ROWS = 2048


def resident_bytes(path: Path) -> int:
    """How much of the file's pages this process has mapped in."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(more.split()[1]) * 1024 for more in lines if more.startswith("Rss:"))
    return 0


def store(folder: Path) -> Path:
    path = folder / "rows.npy"
    np.save(path, np.arange(ROWS * ROW_BYTES // 4, dtype=np.float32).reshape(ROWS, 4, ROW_BYTES // 16))
    return path


def test_rows_come_by_their_numbers_as_copies(tmp_path: Path) -> None:
    array = np.load(store(tmp_path), mmap_mode="r")
    rows = MappedRows(array)
    assert (len(rows), rows.shape, rows.dtype) == (ROWS, array.shape, array.dtype)
    for chosen in (np.array([5, 0, 2047]), np.array([5, 5]), np.array([], dtype=int)):
        found = rows[chosen]
        assert np.array_equal(found, np.array(array)[chosen])
        assert found.flags.writeable
        assert type(found) is np.ndarray


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.reshape(ROWS * 4, -1),
        lambda array: array.reshape(ROWS * 4, 16, -1),
        lambda array: array[100:],
        lambda array: array[:200],
        lambda array: array[:, :2],
        lambda array: array.transpose(0, 2, 1),
        lambda array: array[:, 0, :1],
    ],
)
def test_a_part_or_another_shape_of_a_map_has_its_own_rows(tmp_path: Path, view: Callable[..., Any]) -> None:
    array = view(np.load(store(tmp_path), mmap_mode="r"))
    chosen = np.array([7, 80, 0])
    assert np.array_equal(MappedRows(array)[chosen], array[chosen])


def test_reading_all_rows_leaves_none_of_them_in_memory(tmp_path: Path) -> None:
    path = store(tmp_path)
    rows = MappedRows(np.load(path, mmap_mode="r"))
    order = np.random.default_rng(0).permutation(ROWS)
    for start in range(0, ROWS, 8):
        rows[order[start : start + 8]]
    assert resident_bytes(path) <= 2**17 < ROWS * ROW_BYTES


def test_a_file_that_is_cut_off_is_an_error(tmp_path: Path) -> None:
    path = store(tmp_path)
    rows = MappedRows(np.load(path, mmap_mode="r"))
    with path.open("r+b") as file:
        file.truncate(ROWS * ROW_BYTES // 2)
    with pytest.raises(OSError, match="ends before row 2047"):
        rows[np.array([0, 2047])]


def test_pages_that_were_written_can_be_read_after_their_release(tmp_path: Path) -> None:
    array = allocate_array(tmp_path / "new.npy", (ROWS, ROW_BYTES), "uint8")
    array[:] = 7
    assert resident_bytes(tmp_path / "new.npy") >= ROWS * ROW_BYTES
    release_pages(array[3])
    assert resident_bytes(tmp_path / "new.npy") < mmap.PAGESIZE * 2
    assert (array == 7).all()
    array.flush()
    assert (np.load(tmp_path / "new.npy") == 7).all()


def test_an_array_in_memory_is_left_alone() -> None:
    array = np.arange(12.0).reshape(6, 2)
    release_pages(array)
    assert MappedRows(array)[np.array([1, 4])].tolist() == [[2, 3], [8, 9]]
