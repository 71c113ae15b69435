import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.launcher.api import LaunchConfig

from pipeline.ranks.exchange import ask_all
from pipeline.ranks.launch import call, launch
from pipeline.ranks.team import together
from pipeline.system.errors import Interrupted, UserError

NOTE = (
    "import os, pathlib, sys; pathlib.Path(sys.argv[1], os.environ['RANK']).write_text(os.environ['OMP_NUM_THREADS']);"
)


def test_every_process_runs_the_words_and_has_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.ranks.launch.usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch(3, ["-c", NOTE, str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "2", "1": "2", "2": "2"}


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import os, sys; sys.exit(2 if os.environ['RANK'] == '0' else 0)", 2),
        ("import os; os.environ['RANK'] == '0' and os.kill(os.getpid(), 9)", 137),
        ("import os, sys, time; sys.exit(1) if os.environ['RANK'] == '1' else time.sleep(60)", 1),
    ],
)
def test_the_status_is_that_of_the_leader_or_of_what_failed(program, status):
    assert launch(2, ["-c", program]) == status


SAVES_SLOWLY = """
import os, pathlib, signal, sys, time

def save(*_):
    time.sleep(2)
    folder.joinpath(os.environ["RANK"]).touch()
    sys.exit(1)

folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, save)
folder.joinpath("ready " + os.environ["RANK"]).touch()
while len(list(folder.glob("ready *"))) < 2:
    time.sleep(0.01)
if os.environ["RANK"] == "0":
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


def test_processes_that_are_stopped_have_longer_to_save_their_work_than_torch_would_give_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    assert launch(2, ["-c", SAVES_SLOWLY, str(tmp_path)]) == 130
    assert {"0", "1"} <= {path.name for path in tmp_path.iterdir()}


def test_a_torch_whose_launcher_has_no_such_time_starts_processes_too(monkeypatch):
    monkeypatch.setattr("pipeline.ranks.launch.LaunchConfig", of_torch_2_11)
    monkeypatch.setattr("pipeline.ranks.launch.fields", lambda known: [])
    assert launch(2, ["-c", "pass"]) == 0


def of_torch_2_11(min_nodes, max_nodes, nproc_per_node, run_id, rdzv_backend, rdzv_endpoint, max_restarts):
    return LaunchConfig(
        min_nodes, max_nodes, nproc_per_node, run_id=run_id, rdzv_backend=rdzv_backend, rdzv_endpoint=rdzv_endpoint,
        max_restarts=max_restarts,
    )  # fmt: skip


@pytest.mark.slow
def test_a_launcher_that_is_stopped_stops_its_processes(tmp_path):
    program = (
        "from pipeline.ranks.launch import launch; import sys; "
        f"sys.exit(launch(2, ['-c', {NOTE + 'import time; time.sleep(60)'!r}, {str(tmp_path)!r}]))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    children = psutil.Process(launcher.pid).children()
    assert len(children) == 2
    os.kill(launcher.pid, signal.SIGTERM)
    assert launcher.wait(30) == 130
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def count_helpers(kind: str) -> int:
    """What the leader of `call` does: asks its helpers, and may end in some way."""
    with together(answer, kind):
        answers = ask_all("leader")
    if kind == "mistake":
        raise UserError("The loss is no number.")
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return answers.count("helper")


def answer(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    ask_all("helper")


def wait_to_be_stopped(folder: Path) -> None:
    with together(answer, "wait"):
        ask_all("leader")
    (folder / "there").touch()
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_call_whose_launcher_is_stopped_ends_with_all_of_its_processes(tmp_path, number):
    program = (
        "import sys; from pathlib import Path; from pipeline.ranks.launch import call; "
        "from tests.pipeline.ranks.test_launch import wait_to_be_stopped; "
        f"call(2, wait_to_be_stopped, Path({str(tmp_path)!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (tmp_path / "there").exists() and time.monotonic() < until:
        time.sleep(0.05)
    children = psutil.Process(launcher.pid).children(recursive=True)
    os.kill(launcher.pid, number)
    assert launcher.wait(60) is not None
    until = time.monotonic() + 20  # some, such as Python's own that tidies up, end by themselves after it
    while alive := [child for child in children if runs(child)]:
        assert time.monotonic() < until, alive
        time.sleep(0.05)


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended, though nobody may have asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_call_for_one_process_is_done_in_this_one():
    assert call(1, os.getpid) == os.getpid()


@pytest.mark.slow
def test_a_call_is_done_by_new_processes_and_gives_what_the_first_of_them_does(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    assert call(2, count_helpers, "") == 1
    assert "OMP_NUM_THREADS" not in os.environ
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("mistake", UserError, r"^The loss is no number\.$"),
        ("kill", Interrupted, r" gone: it was killed.* The same command resumes from the last backup\.$"),
        ("stop", KeyboardInterrupt, ""),
    ],
)
def test_a_call_that_ends_otherwise_raises_what_became_of_it(kind, error, words):
    started = time.monotonic()
    with pytest.raises(error, match=words):
        call(2, count_helpers, kind)
    assert time.monotonic() - started < 100
