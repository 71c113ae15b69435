"""A sweep whose trials are trained by two processes each, by the real command: what ends one of them ends no more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest

from pipeline.recipe.schema import write_recipe
from tests.drawn_pictures import draw_pictures
from tests.stages.chains import recipe_on
from tests.workplace import PROJECT, Workplace

pytestmark = pytest.mark.slow

SWEEP = {
    "trials": 2, "gpus_per_trial": 2, "seeds": 1, "heartbeat_seconds": 3, "name": "mine", "pruner": "none",
    "space": {"fine_tune.weight_decay": {"type": "uniform", "low": 0.05, "high": 0.25}},
}  # fmt: skip
SECONDS = 600


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Sweeping:
    """The command in a session of its own, as from a terminal."""

    def __init__(self, place: Workplace, recipe: Path) -> None:
        self.place = place
        words = ["sweep", "--recipe", str(recipe), "--storage", f"sqlite:///{place.folder}/sweeps.db"]
        self.output = place.folder / "output.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stages", *words],
                cwd=PROJECT, env=place.environment(), stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def wait_for_a_trial(self) -> list[psutil.Process]:
        """The processes that train a trial, the leader first, once it is fine-tuning."""
        log = self.place.folder / "cache" / "sweeps" / "mine" / "worker-1.log"
        until(lambda: self.process.poll() is not None or (log.exists() and "fine_tune: started" in log.read_text()))
        until(lambda: log.read_text().rpartition("fine_tune: started")[2].count("\n") > 3)
        assert self.process.poll() is None, self.output.read_text()
        within_worker = [one for one in self.processes() if one.ppid() != self.process.pid]
        ranks = [one for one in within_worker if "spawn_main" in " ".join(one.cmdline())]
        return sorted(ranks, key=psutil.Process.create_time)

    def processes(self) -> list[psutil.Process]:
        """All that the command has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="mine", storage=f"sqlite:///{self.place.folder}/sweeps.db")


@pytest.fixture
def sweeping(fresh_workplace, tmp_path) -> Iterator[Sweeping]:
    recipe = recipe_on(draw_pictures(tmp_path / "pictures"), sweep=SWEEP)
    (tmp_path / "recipe.yaml").write_text(write_recipe(recipe))
    started = Sweeping(fresh_workplace(), tmp_path / "recipe.yaml")
    yield started
    if started.process.poll() is None:
        os.killpg(started.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_trial_one_of_whose_processes_is_killed_is_run_again_and_the_sweep_goes_on(sweeping, victim):
    sweeping.wait_for_a_trial()[victim].kill()
    assert sweeping.process.wait(SECONDS) == 0, sweeping.output.read_text()
    states = [trial.state.name for trial in sweeping.study().trials]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "FAIL"]
    runs = sweeping.place.runs()
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}, "a run stays open"
    tuned = sweeping.place.runs(stage="fine_tune")
    assert "killed, or its machine went away" in tuned[0].data.tags["thaw.reason"]
    assert tuned[1].data.tags["thaw.resumed"] == tuned[0].info.run_id
    assert tuned[1].data.tags["thaw.processes"] == "2"


def test_ctrl_c_ends_all_processes_and_leaves_no_run_open(sweeping):
    sweeping.wait_for_a_trial()
    everything = sweeping.processes()
    assert len(everything) >= 3
    os.killpg(sweeping.process.pid, signal.SIGINT)
    assert sweeping.process.wait(60) == 130, sweeping.output.read_text()
    until(lambda: not [one for one in everything if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], 30)
    runs = sweeping.place.runs()
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}, "a run stays open"
    assert [trial.state.name for trial in sweeping.study().trials][-1] == "WAITING"
