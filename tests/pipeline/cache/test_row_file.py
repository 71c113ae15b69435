import errno
import hashlib
import os
import signal
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache import row_file
from pipeline.cache.hashing import file_checksum
from pipeline.cache.row_file import JOURNAL, finished_rows, write_rows
from tests.forked_processes import fork_program

FILE = "pixels.npy"
SHAPE = (40, 4, 4, 3)
SQUARES = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """Four rows each."""
    monkeypatch.setattr(row_file, "STRETCH_BYTES", 4 * 48)


def rows_from(start, stop=SHAPE[0]):
    yield from SQUARES[start:stop, None]


def written(folder, rows=rows_from):
    """The file after writing, whose checksum is that given by `write_rows`."""
    assert write_rows(folder / FILE, SHAPE, rows) == file_checksum(folder / FILE)
    return np.load(folder / FILE)


def stopped_after(folder, count, error=KeyboardInterrupt):
    def rows(start):
        yield from SQUARES[start:count, None]
        raise error

    with pytest.raises(error):
        write_rows(folder / FILE, SHAPE, rows)


def test_a_file_has_its_rows_in_numpys_format(tmp_path):
    assert (written(tmp_path / "new") == SQUARES).all()
    assert finished_rows(tmp_path / "new" / FILE, SHAPE)[0] == SHAPE[0]


@pytest.mark.parametrize("count", [0, 1, 4, 17, 39])
def test_writing_is_resumed_after_the_rows_that_were_done(tmp_path, count):
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
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == 16
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
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == 16
    assert (written(tmp_path) == SQUARES).all()


@pytest.mark.parametrize(("byte", "rows"), [(0, 0), (128, 0), (128 + 5 * 48, 4), (128 + 15 * 48 + 47, 12)])
def test_rows_from_a_damaged_stretch_on_are_written_again(tmp_path, byte, rows):
    stopped_after(tmp_path, 16)
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(byte)
        before = file.read(1)
        file.seek(byte)
        file.write(bytes([before[0] ^ 1]))
    starts = []
    assert (written(tmp_path, lambda start: starts.append(start) or rows_from(start)) == SQUARES).all()
    assert starts == [rows]
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == SHAPE[0]


def test_a_file_cut_short_is_resumed_where_it_is_complete(tmp_path):
    stopped_after(tmp_path, 16)
    os.truncate(tmp_path / FILE, 128 + 10 * 48)
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == 8


@pytest.mark.parametrize("gone", [FILE, JOURNAL])
def test_without_the_file_or_its_journal_nothing_is_done(tmp_path, gone):
    stopped_after(tmp_path, 16)
    (tmp_path / gone).unlink()
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == 0
    assert (written(tmp_path) == SQUARES).all()


def test_a_file_of_another_shape_is_begun_anew(tmp_path):
    stopped_after(tmp_path, 16)
    assert finished_rows(tmp_path / FILE, (41, 4, 4, 3))[0] == 0


class SlowDisk(FileIO):
    """Takes seven bytes at a time, and is full at one moment."""

    calls, full_at = 0, 0

    def write(self, content):
        SlowDisk.calls += 1
        if SlowDisk.calls == SlowDisk.full_at:
            raise OSError(errno.ENOSPC, "full")
        return super().write(content[:7])


def test_rows_are_on_the_disk_before_the_line_that_covers_them(tmp_path, monkeypatch):
    order, sizes = [], []
    fsync = os.fsync

    def note(descriptor):
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(row_file, "FileIO", SlowDisk)
    write_rows(tmp_path / FILE, SHAPE, rows_from)
    assert order == [FILE, JOURNAL] * 10
    assert all(size >= 128 + 4 * 48 * (stretch + 1) for stretch, size in enumerate(sizes[::2]))


@pytest.mark.parametrize("full_at", [1, 19, 20, 100, 200])
def test_what_comes_after_a_write_that_failed_is_not_written(tmp_path, monkeypatch, full_at):
    with monkeypatch.context() as patched:
        patched.setattr(row_file, "FileIO", SlowDisk)
        patched.setattr(SlowDisk, "calls", 0)
        patched.setattr(SlowDisk, "full_at", full_at)
        with pytest.raises(OSError, match="full"):
            write_rows(tmp_path / FILE, SHAPE, rows_from)
        assert SlowDisk.calls == full_at
    done = finished_rows(tmp_path / FILE, SHAPE)[0]
    assert done <= max(full_at * 7 - 128, 0) // 48
    assert (written(tmp_path) == SQUARES).all()


def test_one_stretch_is_taken_while_the_disk_still_takes_the_one_before_and_no_more(tmp_path, monkeypatch):
    taken, synced, fsync = [], [], os.fsync

    def rows(start):
        for row in range(start, SHAPE[0]):
            taken.append(row)
            yield SQUARES[row : row + 1]

    def note(descriptor):
        """Wait until as much is taken as can be."""
        most, until = min(4 * (len(synced) // 2 + 2), SHAPE[0]), time.monotonic() + 60
        while len(taken) < most and time.monotonic() < until:
            time.sleep(0.001)
        synced.append(len(taken))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_rows(tmp_path / FILE, SHAPE, rows)
    assert synced[::2] == [8, 12, 16, 20, 24, 28, 32, 36, 40, 40]


def test_a_line_waits_for_the_digest_of_all_that_it_covers(tmp_path, monkeypatch):
    class Slow:
        def __init__(self, content=b"", inner=None):
            self.inner = inner or sha256(content)
            self.hexdigest = self.inner.hexdigest

        def update(self, content):
            time.sleep(0.002)
            self.inner.update(content)

        def copy(self):
            return Slow(inner=self.inner.copy())

    sha256 = hashlib.sha256
    monkeypatch.setattr(row_file.hashlib, "sha256", Slow)
    assert (written(tmp_path) == SQUARES).all()
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == SHAPE[0]


def test_writing_is_resumed_after_a_kill(tmp_path):
    program = f"""
import time
import numpy as np
from pathlib import Path
from pipeline.cache import row_file
row_file.STRETCH_BYTES = 4 * 48
squares = np.random.default_rng(0).integers(0, 256, {SHAPE}, dtype=np.uint8)
def rows(start):
    for row in range(start, 18):
        yield squares[row : row + 1]
    while not Path({str(tmp_path / JOURNAL)!r}).read_text().count("\\n") == 4:
        time.sleep(0.01)
    print("there", flush=True)
    time.sleep(60)
row_file.write_rows(Path({str(tmp_path)!r}) / 'pixels.npy', {SHAPE}, rows)
"""
    writer = fork_program(program)
    assert writer.stdout.readline() == "there\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert finished_rows(tmp_path / FILE, SHAPE)[0] == 16
    assert (written(tmp_path) == SQUARES).all()
