"""Commands by two processes: what one makes, two make, each uses what the other made, and nothing is left open."""

import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from pipeline.recipe.schema import write_recipe
from tests.forked_processes import Forked
from tests.several_processes import environments, start_command

STAGES = ("precompute", "train_head", "fine_tune", "resize")
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Place:
    """A folder with a cache, a tracking database and a recipe, and what a command needs to use them."""

    folder: Path
    recipe: Path

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def start(self, *words: str, processes: int = 2) -> list[Forked]:
        """Start a command; helpers are given a tracking server that nobody can reach."""
        common = {**os.environ, "THAW_CACHE": str(self.folder / "cache"), "MLFLOW_EXPERIMENT_NAME": "test"}
        common["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.folder}/mlflow.db"
        common.pop("MLFLOW_EXPERIMENT_ID", None)
        own = [{}, *[{"MLFLOW_TRACKING_URI": NOWHERE}] * (processes - 1)]
        return start_command(words, environments(common, processes, own))

    def run(self, *words: str, processes: int = 2) -> str:
        """What it prints, once it has ended well."""
        started = self.start(*words, processes=processes)
        printed = [one.communicate(250)[0] for one in started]
        assert [one.returncode for one in started] == [0] * processes, "\n".join(printed)
        assert printed[1:] == [""] * (processes - 1), "only the leader speaks"
        return printed[0]

    def main(self, *words: str, processes: int = 2) -> str:
        return self.run(*self.main_words, *words, processes=processes)

    @property
    def main_words(self) -> list[str]:
        return ["main", "--recipe", str(self.recipe), "--stages", ",".join(STAGES)]

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        experiment = self.client.get_experiment_by_name("test")
        return self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])

    def stage(self, name: str) -> Run:
        """The last run of a stage."""
        return [run for run in self.runs() if run.data.tags["thaw.stage"] == name][-1]


def files_of(run: Run) -> Path:
    return Path(run.info.artifact_uri)


def new_place(folder: Path, chain, empty_database: Path) -> Place:
    folder.mkdir(exist_ok=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    (folder / "recipe.yaml").write_text(write_recipe(chain.recipe))
    place = Place(folder, folder / "recipe.yaml")
    place.client.create_experiment("test", artifact_location=str(folder / "artifacts"))
    return place


@pytest.fixture(scope="module")
def place(chain, empty_database, tmp_path_factory) -> Place:
    """Where two processes have done all stages of the chain."""
    made = new_place(tmp_path_factory.mktemp("two processes"), chain, empty_database)
    made.main()
    made.run("evaluate", "--upstream", made.stage("resize").info.run_id)
    return made


@pytest.mark.parametrize("stage", [*STAGES, "evaluate"])
def test_two_processes_make_what_one_makes(chain, place, stage):
    alone, shared = getattr(chain, stage).run, place.stage(stage)
    assert shared.data.tags["thaw.fingerprint"] == alone.data.tags["thaw.fingerprint"]
    assert (alone.data.tags["thaw.processes"], shared.data.tags["thaw.processes"]) == ("1", "2")
    assert shared.info.status == "FINISHED"


@pytest.mark.parametrize("stage", ["train_head", "fine_tune", "resize"])
def test_the_loss_of_each_step_is_that_of_one_process(chain, place, stage):
    alone, shared = (
        pd.read_csv(files / "steps.csv") for files in (getattr(chain, stage).files, files_of(place.stage(stage)))
    )
    assert len(alone) > 4
    np.testing.assert_allclose(shared, alone, atol=1e-5, rtol=0)


def test_the_predictions_are_those_of_one_process(chain, place):
    alone, shared = (
        pd.read_csv(files / "predictions.csv") for files in (chain.evaluate.files, files_of(place.stage("evaluate")))
    )
    numbers = alone.select_dtypes("number").columns
    assert alone.drop(columns=numbers).equals(shared.drop(columns=numbers))
    np.testing.assert_allclose(shared[numbers], alone[numbers], atol=1e-5)


def test_one_process_takes_what_two_made(place):
    printed = place.main(processes=1)
    assert re.findall(r"(\w+): reused run", printed) == list(STAGES)


def test_two_processes_take_what_one_made(chain):
    folder = chain.precompute.files.parents[2]
    made_alone = Place(folder, folder / "no recipe")
    upstream = chain.train_head.run.info.run_id
    printed = made_alone.run("fine_tune", "--upstream", upstream)
    assert f"fine_tune: reused run {chain.fine_tune.run.info.run_id}" in printed


def wait_for(words: str, leader: Forked) -> str:
    """What the leader prints until a line has these words."""
    printed = ""
    while words not in printed:
        line = leader.stdout.readline()
        assert line, printed
        printed += line
    return printed


LONG = ["--fine_tune.cycles", "4", "--fine_tune.fraction", "1"]
REASONS = {
    "helper killed": "Process 1 of 2 is gone: it was killed, or its machine went away.",
    "leader killed": "its process was killed, or its machine went away",
    "helper stopped": "stopped by Ctrl-C or SIGTERM",
    "leader stopped": "stopped by Ctrl-C or SIGTERM",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", REASONS)
def test_whatever_ends_one_process_ends_both_and_the_same_command_goes_on(chain, empty_database, tmp_path, how):
    place = new_place(tmp_path / "place", chain, empty_database)
    whole = new_place(tmp_path / "whole", chain, empty_database)
    leader, helper = place.start(*place.main_words, *LONG)
    wait_for("epoch 17", leader)
    victim, number = (helper, leader)["leader" in how], signal.SIGKILL if "killed" in how else signal.SIGTERM
    os.kill(victim.pid, number)
    started = time.monotonic()
    printed, _ = leader.communicate(60)
    assert helper.wait(60) is not None
    assert time.monotonic() - started < 40, printed

    place.main(*LONG)

    stopped, done = [run for run in place.runs() if run.data.tags["thaw.stage"] == "fine_tune"]
    assert {run.info.status for run in place.runs()} <= {"FINISHED", "KILLED", "FAILED"}, "a run stays open"
    assert stopped.info.status in ("KILLED", "FAILED")
    assert REASONS[how] in stopped.data.tags["thaw.reason"]
    assert done.data.tags["thaw.resumed"] == stopped.info.run_id
    whole.main(*LONG, processes=1)
    expected, found = (pd.read_csv(files_of(one.stage("resize")) / "steps.csv") for one in (whole, place))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_a_mistake_is_told_by_the_leader_alone_and_ends_both(place):
    leader, helper = place.start(*place.main_words, "--seed", "one")
    printed, _ = leader.communicate(60)
    assert leader.returncode == 2
    assert "seed is 'one'; it takes a whole number" in printed
    helper.kill()  # as torchrun does, once the other has failed
