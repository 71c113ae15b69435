import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.system.processes import defer_signals, environment_set, identity, is_alive, may_belong_to_one_alive

PROJECT = Path(__file__).parents[3]
RUN = "a" * 32


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended after the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def sleeping(tmp_path: Path, name: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A process that is called `name`, with these arguments and variables, and waits."""
    script = tmp_path / name
    script.write_text("import time; print('there', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments], env=os.environ | variables, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_this_process_is_alive():
    assert is_alive(identity())


def test_a_process_that_was_killed_is_not(started):
    code = "from pipeline.system.processes import identity; print(identity(), flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    theirs = process.stdout.readline().strip()
    assert is_alive(theirs)
    assert theirs != identity()
    process.kill()
    process.wait()
    assert is_alive(theirs) is False


def test_a_later_process_of_the_same_number_is_another():
    machine, number, started_at = identity().rsplit(":", 2)
    assert is_alive(f"{machine}:{number}:{float(started_at) - 100:.2f}") is False


def test_whether_a_process_of_another_machine_is_alive_is_not_known():
    assert is_alive("another-machine:1:5.00") is None


def test_a_run_may_belong_to_the_process_that_was_given_its_id(tmp_path, started):
    assert not may_belong_to_one_alive(RUN, time.time())
    started.append(sleeping(tmp_path, "stage.py", MLFLOW_RUN_ID=RUN))
    assert may_belong_to_one_alive(RUN, time.time())
    assert not may_belong_to_one_alive("b" * 32, time.time())


def test_a_run_may_belong_to_an_mlflow_run_that_has_no_process_yet(tmp_path, started):
    before = time.time() - 100
    started.append(sleeping(tmp_path, "mlflow", "run", "."))
    assert may_belong_to_one_alive(RUN, time.time())
    assert not may_belong_to_one_alive(RUN, before), "it was not running when the run was created"


def test_an_mlflow_run_that_works_for_another_run_has_nothing_to_do_with_it(tmp_path, started):
    script = tmp_path / "mlflow"
    script.write_text(
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'print(1, flush=True); import time; time.sleep(60)'],"
        f" env=os.environ | {{'MLFLOW_RUN_ID': '{'b' * 32}'}})"
    )
    process = subprocess.Popen([sys.executable, str(script), "run", "."], stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    assert not may_belong_to_one_alive(RUN, time.time())
    assert may_belong_to_one_alive("b" * 32, time.time())
    subprocess.run(["pkill", "-9", "-P", str(process.pid)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process that its parent has ended")
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    inner = (
        "import signal, sys, time\n"
        "from pipeline.system.processes import end_with_parent\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'ended')!r}, 'w').close(), sys.exit()))\n"
        "end_with_parent(); print('there', flush=True); time.sleep(60)"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    process = subprocess.Popen([sys.executable, "-c", outer], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 600
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# For each block that was reached to its end, whether a signal had been noted, after each signal.
reached: list[list[bool]] = []


@pytest.fixture(autouse=True)
def _forget():
    reached.clear()


def receive(*numbers: signal.Signals, then: Exception | None = None) -> list[bool]:
    """Receive these signals within the block: whether one was noted, after each."""
    seen: list[bool] = []
    with defer_signals() as stopped:
        for number in numbers:
            os.kill(os.getpid(), number)
            seen.append(stopped())
        reached.append(seen)
        if then is not None:
            raise then
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_acts_at_the_end_of_the_block(number):
    with pytest.raises(KeyboardInterrupt):
        receive(number)
    assert reached == [[True]]


BOTH_AT_ONCE = """
import os, signal
from pipeline.system.processes import raise_on_signals
raise_on_signals()
both = signal.SIGINT, signal.SIGTERM
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    os.kill(os.getpid(), number)
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
except KeyboardInterrupt:
    print("cleaned up")
"""


def test_the_sigterm_that_follows_a_ctrl_c_disturbs_no_clean_up():
    done = subprocess.run([sys.executable, "-c", BOTH_AT_ONCE], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("cleaned up\n", "", 0)


def test_a_second_ctrl_c_acts_at_once():
    with pytest.raises(KeyboardInterrupt):
        receive(signal.SIGINT, signal.SIGINT)
    assert not reached


def test_the_sigterm_that_follows_a_ctrl_c_is_deferred_too():
    with pytest.raises(KeyboardInterrupt):
        receive(signal.SIGINT, signal.SIGTERM)
    assert reached == [[True, True]]


def test_without_a_signal_nothing_happens_and_the_handlers_are_as_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    receive()
    assert reached == [[]]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_within_the_block_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="in the block"):
        receive(signal.SIGTERM, then=ValueError("in the block"))


def test_in_another_thread_nothing_is_deferred_and_nothing_breaks():
    thread = threading.Thread(target=receive)
    thread.start()
    thread.join()
    assert reached == [[]]


def test_variables_are_set_for_the_block_and_then_restored(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with environment_set({"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1"}):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("2", "1")
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
