"""Commands by two processes: what one makes, two make, each uses what the other made, and nothing is left open."""

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from pipeline.recipe.schema import write_recipe
from tests.forked_processes import Forked
from tests.several_processes import environments, start_command
from tests.stages.chains import Chain
from tests.workplace import LONGEST_SECONDS, Workplace

STAGES = ("precompute", "train_head", "fine_tune", "resize")
NOWHERE = "http://127.0.0.1:9"


def start(workplace: Workplace, *words: str, processes: int = 2) -> list[Forked]:
    """Start a command; helpers are given a tracking server that nobody can reach."""
    own = [{}, *[{"MLFLOW_TRACKING_URI": NOWHERE}] * (processes - 1)]
    return start_command(words, environments(workplace.environment(), processes, own))


def run(workplace: Workplace, *words: str, processes: int = 2) -> str:
    """What a command prints, once it has ended well."""
    started = start(workplace, *words, processes=processes)
    printed = [one.communicate(LONGEST_SECONDS)[0] for one in started]
    assert [one.returncode for one in started] == [0] * processes, "\n".join(printed)
    assert printed[1:] == [""] * (processes - 1), "only the leader speaks"
    return printed[0]


def main_words(workplace: Workplace, chain: Chain) -> list[str]:
    """main, by the recipe of the chain, which is written into the workplace."""
    recipe = workplace.folder / "recipe.yaml"
    recipe.write_text(write_recipe(chain.recipe))
    return ["main", "--recipe", str(recipe), "--stages", ",".join(STAGES)]


def last_run(workplace: Workplace, stage: str) -> Run:
    return workplace.runs(stage=stage)[-1]


def files_of(run: Run) -> Path:
    return Path(run.info.artifact_uri)


@pytest.fixture(scope="module")
def place(chain, fresh_workplace) -> Workplace:
    """Where two processes have done all stages of the chain."""
    made = fresh_workplace()
    run(made, *main_words(made, chain))
    run(made, "evaluate", "--upstream", last_run(made, "resize").info.run_id)
    return made


@pytest.mark.parametrize("stage", [*STAGES, "evaluate"])
def test_two_processes_make_what_one_makes(chain, place, stage):
    alone, shared = chain[stage].run, last_run(place, stage)
    assert shared.data.tags["thaw.fingerprint"] == alone.data.tags["thaw.fingerprint"]
    assert (alone.data.tags["thaw.processes"], shared.data.tags["thaw.processes"]) == ("1", "2")
    assert shared.info.status == "FINISHED"


@pytest.mark.parametrize("stage", ["train_head", "fine_tune", "resize"])
def test_the_loss_of_each_step_is_that_of_one_process(chain, place, stage):
    alone, shared = (
        pd.read_csv(files / "steps.csv") for files in (chain[stage].files, files_of(last_run(place, stage)))
    )
    assert len(alone) > 4
    np.testing.assert_allclose(shared, alone, atol=1e-5, rtol=0)


def test_the_predictions_are_those_of_one_process(chain, place):
    alone, shared = (
        pd.read_csv(files / "predictions.csv")
        for files in (chain["evaluate"].files, files_of(last_run(place, "evaluate")))
    )
    numbers = alone.select_dtypes("number").columns
    assert alone.drop(columns=numbers).equals(shared.drop(columns=numbers))
    np.testing.assert_allclose(shared[numbers], alone[numbers], atol=1e-5)


def test_one_process_takes_what_two_made(chain, place):
    printed = run(place, *main_words(place, chain), processes=1)
    assert re.findall(r"(\w+): reused run", printed) == list(STAGES)


def test_two_processes_take_what_one_made(chain):
    printed = run(chain.workplace, "fine_tune", "--upstream", chain["train_head"].id)
    assert f"fine_tune: reused run {chain['fine_tune'].id}" in printed


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
def test_whatever_ends_one_process_ends_both_and_the_same_command_goes_on(chain, fresh_workplace, how):
    place, whole = fresh_workplace(), fresh_workplace()
    words = [*main_words(place, chain), *LONG]
    leader, helper = start(place, *words)
    wait_for("epoch 17", leader)
    victim, number = (helper, leader)["leader" in how], signal.SIGKILL if "killed" in how else signal.SIGTERM
    os.kill(victim.pid, number)
    started = time.monotonic()
    printed, _ = leader.communicate(60)
    assert helper.wait(60) is not None
    assert time.monotonic() - started < 40, printed

    run(place, *words)

    stopped, done = place.runs(stage="fine_tune")
    assert {run.info.status for run in place.runs()} <= {"FINISHED", "KILLED", "FAILED"}, "a run stays open"
    assert stopped.info.status in ("KILLED", "FAILED")
    assert REASONS[how] in stopped.data.tags["thaw.reason"]
    assert done.data.tags["thaw.resumed"] == stopped.info.run_id
    run(whole, *words, processes=1)
    expected, found = (pd.read_csv(files_of(last_run(one, "resize")) / "steps.csv") for one in (whole, place))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_a_mistake_is_told_by_the_leader_alone_and_ends_both(chain, place):
    leader, helper = start(place, *main_words(place, chain), "--seed", "one")
    printed, _ = leader.communicate(60)
    assert leader.returncode == 2
    assert "seed is 'one'; it takes a whole number" in printed
    helper.kill()  # as torchrun does, once the other has failed
