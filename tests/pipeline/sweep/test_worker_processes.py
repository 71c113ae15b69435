import json
import os
import signal
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from pipeline.sweep.worker_processes import HAS_GIVEN_UP, Workers, environment_of
from pipeline.system.errors import UserError
from tests.pipeline.sweep.worker_targets import crash, describe, wait


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def clear_all(workers: Workers) -> bool:
    until(lambda: all(process is None or process.exitcode is not None for process in workers._processes))
    return workers.clear_ended()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_worker_prints_into_a_file_has_its_threads_and_gpu_from_its_start_and_may_give_up(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pipeline.sweep.worker_processes.usable_cores", lambda: 2)
    before = dict(os.environ)
    with Workers(2, describe, (tmp_path,), tmp_path / "logs", gpus=2) as workers:
        workers.start_missing()
        assert dict(os.environ) == before
        until(lambda: workers._processes[0].exitcode is not None and workers._processes[1].exitcode is not None)
        assert [process.exitcode for process in workers._processes] == [0, HAS_GIVEN_UP]
        assert not workers.clear_ended()
        assert "at work" in workers.log(0).read_text()
    for index in range(2):
        seen = json.loads((tmp_path / f"{index}.json").read_text())
        assert seen == {"started with": ["1", str(index)], "now": ["1", str(index)]}


def test_threads_that_the_user_gave_are_kept(monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of(0, 2, 0)["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1", "2", "0"]), ("5,7", ["5", "7", "5", "7"])])
def test_each_worker_has_a_gpu_of_its_own_if_there_are_as_many(visible, expected, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [environment_of(index, 4, 3)["CUDA_VISIBLE_DEVICES"] for index in range(4)] == expected


@pytest.mark.parametrize(("visible", "expected"), [("", ["0,1", "2,3"]), ("4,5,6,7", ["4,5", "6,7"])])
def test_workers_of_several_processes_have_as_many_gpus_and_share_the_cores_among_all(visible, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("pipeline.sweep.worker_processes.usable_cores", lambda: 12)
    given = [environment_of(index, 2, 4, gpus_each=2) for index in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == expected
    assert [one["OMP_NUM_THREADS"] for one in given] == ["3", "3"]


def test_one_that_is_killed_is_replaced_and_at_the_end_all_are_stopped_to_save_their_trials(
    tmp_path,
) -> None:
    with Workers(1, wait, (tmp_path,), tmp_path / "logs") as workers:
        workers.start_missing()
        until(lambda: list(tmp_path.glob("0-*")))
        (first,) = tmp_path.glob("0-*")
        pid = int(first.name.split("-")[1])
        os.kill(pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert clear_all(workers)
        workers.start_missing()
        until(lambda: len(list(tmp_path.glob("0-*"))) == 2)
    assert (tmp_path / "stopped 0").exists()


def ended(exit_code: int) -> SimpleNamespace:
    return SimpleNamespace(exitcode=exit_code, is_alive=lambda: False)


def test_one_that_gives_up_is_reported(tmp_path) -> None:
    with Workers(2, wait, (tmp_path,), tmp_path / "logs") as workers:
        workers._processes = [ended(0), ended(HAS_GIVEN_UP)]
        assert not workers.clear_ended()
        assert workers._processes == [None, None]


def test_workers_that_only_crash_are_reported_with_where_to_look(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sweep.worker_processes.MOST_CRASHES", 2)
    with Workers(2, crash, (tmp_path,), tmp_path / "logs") as workers:
        workers._processes[0] = ended(-9)
        workers.start_missing()
        with pytest.raises(UserError, match=r"The last 2 workers crashed; .*worker-2.log says why"):
            clear_all(workers)
        assert "ValueError: no good" in workers.log(1).read_text()
