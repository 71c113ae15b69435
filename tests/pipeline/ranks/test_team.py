"""What one process meets, all hear; and none waits for ever, or outlives the leader."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from pipeline.ranks import team, watch
from pipeline.ranks.environment import Rank
from pipeline.ranks.exchange import ask_all
from pipeline.ranks.team import deal, led, processes, together
from pipeline.ranks.watch import HelperError
from pipeline.system.errors import Interrupted, Pruned, UserError
from pipeline.system.memory import keep_freed_memory
from tests.several_processes import Forked, environments, run_led, start_led

SLOW = torch.ones(3)


def note(folder: Path) -> None:
    """A helper's call: notes who was called."""
    (folder / str(deal().number)).write_text(f"{os.environ['RANK']} of {processes()}")


def lead_twice(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        with together(note, folder / name):
            note(folder / name)


def test_a_call_reaches_every_process_and_the_next_one_does_too(tmp_path):
    run_led(lead_twice, tmp_path, processes=3, cache=tmp_path / "cache")
    for name in ("one", "two"):
        assert {path.name: path.read_text() for path in (tmp_path / name).iterdir()} == {
            str(number): f"{number} of 3" for number in range(3)
        }


def note_memory(path: Path, blocks: int) -> None:
    """A helper's call that needs so many MiB, and notes how many the process then has."""
    keep_freed_memory()
    held = [np.ones(2**17) for _ in range(blocks)]
    path.write_text(str(psutil.Process().memory_info().rss // 2**20))
    del held


def lead_to_memory(folder: Path) -> None:
    for name, blocks in (("much", 256), ("little", 0)):
        with together(note_memory, folder / name, blocks):
            pass


def test_between_calls_a_helper_gives_back_what_it_has_freed(tmp_path):
    run_led(lead_to_memory, tmp_path, cache=tmp_path / "cache")
    much, little = (int((tmp_path / name).read_text()) for name in ("much", "little"))
    assert much - little > 200


def look_seldom() -> None:
    """A helper's call after which it is late to hear of the end, as on a busy machine."""
    team.SECONDS_BETWEEN_LOOKS, watch.SECONDS_BETWEEN_LOOKS = 1.5, 3.0


def lead_one_that_looks_seldom() -> None:
    with together(look_seldom):
        time.sleep(0.7)


def test_the_leader_and_its_store_stay_until_the_helpers_have_left(tmp_path):
    run_led(lead_one_that_looks_seldom, cache=tmp_path)


def test_a_process_alone_calls_nobody(tmp_path):
    with led(Rank()), together(note, tmp_path):
        assert processes() == 1
        assert not deal().is_shared
    assert not list(tmp_path.iterdir())


def be_brief() -> None:
    """From now on this process waits no longer for others than it must where all run on one machine."""
    watch.SECONDS_TO_LEAVE, team.SECONDS_TO_HEAR, team.SECONDS_TO_CLOSE = 1.0, 1.0, 1.5


def fail(kind: str) -> None:
    """A helper's call that ends in some way, while the leader waits in an exchange."""
    be_brief()
    if deal().number == 1:
        if kind == "mistake":
            raise UserError("The picture a.png is not what it was; run precompute again.")
        if kind == "error":
            raise ZeroDivisionError("float division by zero")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    ask_all(None)


def lead_to_failure(folder: Path, kind: str) -> None:
    error: BaseException | None = None
    started = time.monotonic()
    try:
        with together(fail, kind):
            ask_all(None)
    except (UserError, HelperError) as caught:
        error = caught
    (folder / "error").write_text(f"{type(error).__name__} {time.monotonic() - started:.0f} {error}")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mistake", "UserError {} The picture a.png is not what it was; run precompute again."),
        ("error", "HelperError {} In process 1 of 3: ZeroDivisionError: float division by zero"),
        (
            "kill",
            "Interrupted {} Process 1 of 3 is gone: it was killed, or its machine went away. The same command resumes "
            "from the last backup.",
        ),
    ],
)
def test_the_error_of_a_helper_is_raised_by_the_leader_and_all_end(tmp_path, kind, words):
    started = start_led(lead_to_failure, (tmp_path, kind), environments({"THAW_CACHE": str(tmp_path)}, 3))
    ended = [(one.communicate(60), one.returncode) for one in started]
    kind_of_error, seconds, sentence = (tmp_path / "error").read_text().split(" ", 2)
    assert f"{kind_of_error} {{}} {sentence}" == words
    assert int(seconds) <= 5
    assert ended[0][1] == 0, ended
    assert ended[1][1] == (-signal.SIGKILL if kind == "kill" else 1)
    assert ended[2][1] in (0, 1)  # by whether it heard of the end, or found the leader gone


def answer() -> None:
    """A helper's call that ends well."""
    ask_all(None)


def lead_after_a_trial_that_is_pruned(folder: Path) -> None:
    started = time.monotonic()
    try:
        with together(answer):
            ask_all(None)
            raise Pruned("pruned at epoch 1")
    except Pruned:
        (folder / "seconds").write_text(str(time.monotonic() - started))
    with together(answer):
        ask_all(None)
        (folder / "again").touch()


def test_a_trial_that_is_pruned_keeps_the_helpers_and_waits_for_no_failure_of_theirs(tmp_path):
    run_led(lead_after_a_trial_that_is_pruned, tmp_path, cache=tmp_path / "cache")
    assert (tmp_path / "again").exists()
    assert float((tmp_path / "seconds").read_text()) < team.SECONDS_TO_HEAR


def wait_long(seconds_to_leave: float) -> None:
    """A helper's call that does not end by itself; it begins once the helper has seen its leader."""
    watch.SECONDS_TO_LEAVE = seconds_to_leave
    assert team._session is not None
    while 0 not in team._session.watch._members:
        time.sleep(0.01)
    ask_all(None)
    time.sleep(100)


def lead_until_stopped(folder: Path, seconds_to_leave: float) -> None:
    be_brief()
    try:
        with together(wait_long, seconds_to_leave):
            ask_all(None)
            (folder / "waiting").touch()
            time.sleep(100)
    except KeyboardInterrupt:
        (folder / "stopped").touch()
        raise


def start_waiting(folder: Path, seconds_to_leave: float) -> list[Forked]:
    started = start_led(lead_until_stopped, (folder, seconds_to_leave), environments({"THAW_CACHE": str(folder)}, 2))
    until = time.monotonic() + 60
    while not (folder / "waiting").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    return started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_helper_that_is_asked_to_stop_asks_the_leader_who_ends_all(tmp_path, number):
    leader, helper = start_waiting(tmp_path, seconds_to_leave=1.0)
    os.kill(helper.pid, number)
    assert "KeyboardInterrupt" in leader.communicate(30)[0]
    assert (tmp_path / "stopped").exists()
    assert helper.wait(30) is not None


def test_a_helper_leaves_at_once_where_its_leader_was_killed(tmp_path):
    leader, helper = start_waiting(tmp_path, seconds_to_leave=60.0)
    leader.kill()
    assert helper.wait(30) == 1


def never_answer() -> None:
    """A helper's call that makes the leader wait for longer than it may."""
    time.sleep(3)


def lead_past_the_deadline(folder: Path) -> None:
    be_brief()
    try:
        with together(never_answer):
            dist.all_reduce(SLOW.clone())
    except Interrupted as error:
        (folder / "error").write_text(str(error))


def test_no_exchange_waits_for_longer_than_the_deadline(tmp_path):
    given = environments({"THAW_CACHE": str(tmp_path)}, 2, [{"THAW_DEADLINE_SECONDS": "2"}] * 2)
    started = start_led(lead_past_the_deadline, (tmp_path,), given)
    assert started[0].wait(60) == 0
    assert started[1].wait(60) is not None
    assert (tmp_path / "error").read_text().startswith("The processes have waited for one another for more than 2 s (")


def test_no_thread_is_left_behind():
    assert "ranks" not in {thread.name for thread in threading.enumerate()}
