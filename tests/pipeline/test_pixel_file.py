import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import pixel_file
from pipeline.pixel_file import FILE, JOURNAL, finished_rows, write_rows
from pipeline.store import file_checksum

PROJECT = Path(__file__).parents[2]
SHAPE = (40, 4, 4, 3)
SQUARES = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """Four rows each."""
    monkeypatch.setattr(pixel_file, "STRETCH_BYTES", 4 * 48)


def rows_from(start, stop=SHAPE[0]):
    yield from SQUARES[start:stop, None]


def written(folder, rows=rows_from):
    """The file read anew; its checksum is what writing it gave."""
    assert write_rows(folder, SHAPE, rows) == file_checksum(folder / FILE)
    return np.load(folder / FILE)


def stopped_after(folder, count, error=KeyboardInterrupt):
    def rows(start):
        yield from SQUARES[start:count, None]
        raise error

    with pytest.raises(error):
        write_rows(folder, SHAPE, rows)


def test_a_file_has_its_rows_in_numpys_format(tmp_path):
    assert (written(tmp_path / "new") == SQUARES).all()
    assert finished_rows(tmp_path / "new", SHAPE)[0] == SHAPE[0]


@pytest.mark.parametrize("count", [0, 1, 4, 17, 39])
def test_writing_goes_on_after_the_rows_that_were_done(tmp_path, count):
    stopped_after(tmp_path, count)
    starts = []

    def rows(start):
        starts.append(start)
        return rows_from(start)

    assert (written(tmp_path, rows) == SQUARES).all()
    assert starts == [count]


def test_rows_that_no_line_covers_are_written_again(tmp_path):
    stopped_after(tmp_path, 17)
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    assert finished_rows(tmp_path, SHAPE)[0] == 16
    assert (written(tmp_path) == SQUARES).all()


@pytest.mark.parametrize(
    "end", [b"", b"20", b"20 ", b"20 abc", b"20 abc\n", b"rows\n", b"\xff\n", b"99 abc\n", b"3 x\n"]
)
def test_a_line_that_is_not_whole_or_not_true_covers_nothing(tmp_path, end):
    stopped_after(tmp_path, 16)
    with (tmp_path / JOURNAL).open("ab") as journal:
        journal.write(end)
    with (tmp_path / FILE).open("ab") as file:
        file.write(bytes(4 * 48))
    assert finished_rows(tmp_path, SHAPE)[0] == 16
    assert (written(tmp_path) == SQUARES).all()


@pytest.mark.parametrize(("byte", "rows"), [(0, 0), (128, 0), (128 + 5 * 48, 4), (128 + 15 * 48 + 47, 12)])
def test_rows_from_a_damaged_stretch_on_are_written_again(tmp_path, byte, rows):
    stopped_after(tmp_path, 16)
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(byte)
        before = file.read(1)
        file.seek(byte)
        file.write(bytes([before[0] ^ 1]))
    assert finished_rows(tmp_path, SHAPE)[0] == rows
    assert (written(tmp_path) == SQUARES).all()


def test_a_file_cut_short_is_gone_on_with_from_where_it_is_whole(tmp_path):
    stopped_after(tmp_path, 16)
    os.truncate(tmp_path / FILE, 128 + 10 * 48)
    assert finished_rows(tmp_path, SHAPE)[0] == 8


@pytest.mark.parametrize("gone", [FILE, JOURNAL])
def test_without_the_file_or_its_journal_nothing_is_done(tmp_path, gone):
    stopped_after(tmp_path, 16)
    (tmp_path / gone).unlink()
    assert finished_rows(tmp_path, SHAPE)[0] == 0
    assert (written(tmp_path) == SQUARES).all()


def test_a_file_of_another_shape_is_begun_anew(tmp_path):
    stopped_after(tmp_path, 16)
    assert finished_rows(tmp_path, (41, 4, 4, 3))[0] == 0


def test_rows_are_on_the_disk_before_the_line_that_covers_them(tmp_path, monkeypatch):
    order = []
    fsync = os.fsync

    def note(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_rows(tmp_path, SHAPE, rows_from)
    assert order == [FILE, JOURNAL] * 10


def test_a_writer_that_is_killed_is_gone_on_from(tmp_path):
    program = f"""
import time
import numpy as np
from pipeline import pixel_file
pixel_file.STRETCH_BYTES = 4 * 48
squares = np.random.default_rng(0).integers(0, 256, {SHAPE}, dtype=np.uint8)
def rows(start):
    for row in range(start, 18):
        yield squares[row : row + 1]
    print("there", flush=True)
    time.sleep(60)
pixel_file.write_rows(pixel_file.Path({str(tmp_path)!r}), {SHAPE}, rows)
"""
    writer = subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "there\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert finished_rows(tmp_path, SHAPE)[0] == 16
    assert (written(tmp_path) == SQUARES).all()
