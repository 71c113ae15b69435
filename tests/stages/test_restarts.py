"""torchrun's restarts: whichever process is killed, all are started again by themselves and go on from the backup."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.stages.test_two_processes import LONG, files_of, last_run, main_words, run
from tests.workplace import PROJECT

pytestmark = pytest.mark.slow

SECONDS = 600


@pytest.mark.parametrize("victim", ["0", "1"])
def test_processes_that_torchrun_starts_again_resume_from_the_backup(chain, fresh_workplace, victim):
    place, whole = fresh_workplace(), fresh_workplace()
    words = [*main_words(place, chain), *LONG]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
         "-m", "stages", *words],
        cwd=PROJECT, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert launcher.stdout is not None
        printed = ""
        while "epoch 17" not in printed:
            line = launcher.stdout.readline()
            assert line, printed
            printed += line
        kill_rank(launcher.pid, victim)
        printed += launcher.communicate(timeout=SECONDS)[0]
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)

    assert launcher.returncode == 0, printed
    stopped, done = place.runs(stage="fine_tune")
    assert {one.info.status for one in place.runs()} <= {"FINISHED", "KILLED", "FAILED"}, "a run stays open"
    assert "killed, or its machine went away" in stopped.data.tags["thaw.reason"]
    assert done.data.tags["thaw.resumed"] == stopped.info.run_id
    run(whole, *words, processes=1)
    expected, found = (pd.read_csv(files_of(last_run(one, "resize")) / "steps.csv") for one in (whole, place))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def kill_rank(launcher: int, number: str) -> None:
    """Kill the process of this number, which the launcher has started."""
    (rank,) = [one for one in psutil.Process(launcher).children() if one.environ().get("RANK") == number]
    rank.kill()
    until = time.monotonic() + 10
    while rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.02)
