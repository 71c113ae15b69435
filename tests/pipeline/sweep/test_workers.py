import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.errors import UserError
from pipeline.sweep.workers import HAS_GIVEN_UP, Workers, environment_of


def note(place: int, folder: Path) -> bool:
    print("at work")
    threads, gpu = os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES", "")
    (folder / f"{place}-{os.getpid()}").write_text(f"{threads} {gpu}")
    return True


def wait(place: int, folder: Path) -> bool:
    (folder / f"{place}-{os.getpid()}").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / f"stopped {place}").touch()
        raise
    return True


def give_up(place: int, folder: Path) -> bool:
    return False


def crash(place: int, folder: Path) -> bool:
    raise ValueError("no good")


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def clear_all(workers: Workers) -> bool:
    until(lambda: all(process is None or process.exitcode is not None for process in workers._places))
    return workers.clear_ended()


def test_each_place_has_its_share_of_the_cores_and_prints_into_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Workers(2, note, (tmp_path,), tmp_path / "logs") as workers:
        workers.fill()
        assert clear_all(workers)
        assert "at work" in workers.log(0).read_text()
    places = sorted(path.name.split("-")[0] for path in tmp_path.glob("?-*"))
    assert places == ["0", "1"]
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert all(path.read_text().split()[0] == share for path in tmp_path.glob("?-*"))


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1", "2", "0"]), ("5,7", ["5", "7", "5", "7"])])
def test_each_place_has_a_gpu_of_its_own_where_there_are_as_many(visible, expected, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [environment_of(place, 4)["CUDA_VISIBLE_DEVICES"] for place in range(4)] == expected


def test_at_the_end_of_the_block_workers_are_stopped_and_can_keep_what_they_have(tmp_path) -> None:
    with Workers(1, wait, (tmp_path,), tmp_path / "logs") as workers:
        workers.fill()
        until(lambda: list(tmp_path.glob("0-*")))
    assert (tmp_path / "stopped 0").exists()


def test_one_that_is_killed_is_replaced(tmp_path) -> None:
    with Workers(1, wait, (tmp_path,), tmp_path / "logs") as workers:
        workers.fill()
        until(lambda: list(tmp_path.glob("0-*")))
        (first,) = tmp_path.glob("0-*")
        pid = int(first.name.split("-")[1])
        os.kill(pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert clear_all(workers)
        workers.fill()
        until(lambda: len(list(tmp_path.glob("0-*"))) == 2)


def test_one_that_gives_up_is_told(tmp_path) -> None:
    with Workers(1, give_up, (tmp_path,), tmp_path / "logs") as workers:
        workers.fill()
        until(lambda: workers._places[0].exitcode == HAS_GIVEN_UP)
        assert not workers.clear_ended()


def test_workers_that_only_crash_are_told_with_where_to_look(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sweep.workers.MOST_CRASHES", 2)
    with Workers(2, crash, (tmp_path,), tmp_path / "logs") as workers:
        workers.fill()
        with pytest.raises(UserError, match=r"The last 2 workers ended badly; .*worker-\d.log says why"):
            clear_all(workers)
        assert "ValueError: no good" in workers.log(0).read_text()
