"""A sweep with workers on a real PostgreSQL, some of them killed with -9, and resumed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy
from optuna.trial import TrialState

from tests.postgres_server import postgres_server
from tests.workplace import PROJECT, Workplace, copy_cells

pytestmark = pytest.mark.slow

TRIALS = 8
RECIPE = ["--recipe", "recipes/smoke.yaml", "--sweep.heartbeat_seconds", "2", "--sweep.seeds", "1"]
LONGER = ["--fine_tune.cycles", "3", "--sweep.pruner", "none", "--sweep.name", "killed"]


@pytest.fixture
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    made = Workplace(tmp_path_factory.mktemp("sweep"))
    copy_cells(made.pictures, 40)
    made.client.create_experiment("cells", artifact_location=str(made.folder / "artifacts"))
    return made


def start(workplace: Workplace, url: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages", "sweep", *RECIPE, "--data", str(workplace.pictures), "--storage", url]
    return subprocess.Popen(
        [*command, *arguments], cwd=PROJECT, env=workplace.environment() | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for(condition: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def study_names(url: str) -> list[str]:
    """Asked of the database itself: Optuna would make its tables beside the command that is making them."""
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    engine = sqlalchemy.create_engine(url)
    if not sqlalchemy.inspect(engine).has_table("trial_heartbeats"):
        return []
    with engine.connect() as connection:
        return list(connection.execute(sqlalchemy.text("SELECT study_name FROM studies")).scalars())


def study_at(url: str) -> optuna.Study:
    (name,) = study_names(url)
    return optuna.load_study(study_name=name, storage=url)


def in_state(study: optuna.Study, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def training(workplace: Workplace, study: optuna.Study) -> dict[int, int]:
    """The process that trains each running trial that is past its first epoch, by number."""
    found = {}
    for trial in in_state(study, TrialState.RUNNING):
        if trial.intermediate_values and "run_id" in trial.user_attrs:
            process = workplace.client.get_run(trial.user_attrs["run_id"]).data.tags["thaw.process"]
            found[trial.number] = int(process.split(":")[1])
    return found


def test_four_workers_two_of_them_killed_and_every_trial_is_accounted_for(workplace: Workplace, tmp_path: Path) -> None:
    with postgres_server(tmp_path) as url:
        command = start(workplace, url, *LONGER, "--workers", "4", "--trials", str(TRIALS))
        try:
            wait_for(lambda: study_names(url))
            study = study_at(url)
            killed: dict[int, int] = {}
            for number_of_kills in (1, 2):
                wait_for(lambda: set(training(workplace, study)) - set(killed))
                number, process = next(item for item in training(workplace, study).items() if item[0] not in killed)
                os.kill(process, signal.SIGKILL)
                killed[number] = process
                assert len(killed) == number_of_kills
            printed, _ = command.communicate(timeout=500)
        finally:
            _end(command)
        assert command.returncode == 0, printed

        assert not in_state(study, TrialState.RUNNING, TrialState.WAITING)
        trials = study.trials
        dead = [trial for trial in trials if trial.state == TrialState.FAIL]
        assert {trial.number for trial in dead} == set(killed)
        retries = {
            trial.system_attrs["retry_history"][-1]: trial for trial in trials if "failed_trial" in trial.system_attrs
        }
        assert set(retries) == set(killed)
        assert len(trials) == TRIALS + len(killed)
        complete = in_state(study, TrialState.COMPLETE)
        assert len(complete) == TRIALS
        assert len({tuple(trial.params.items()) for trial in complete}) == TRIALS
        assert all(retries[trial.number].params == trial.params for trial in dead)

        runs = workplace.runs()
        assert not [run for run in runs if run.info.status == "RUNNING"]
        status = {run.info.run_id: run.info.status for run in runs}
        assert all(status[trial.user_attrs["run_id"]] == "FINISHED" for trial in complete)
        of_dead = [trial.user_attrs["run_id"] for trial in dead]
        assert all(status[run_id] == "KILLED" for run_id in of_dead)
        print(printed)


def test_a_sweep_that_is_stopped_resumes_its_trial(workplace: Workplace, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sweeps.db"
    for stop in (signal.SIGINT, signal.SIGKILL):
        command = start(workplace, url, "--trials", "3", "--fine_tune.cycles", "3")
        try:
            wait_for(lambda: study_names(url))
            study = study_at(url)
            wait_for(lambda s=study: training(workplace, s))
            workers = psutil.Process(command.pid).children(recursive=True)
            command.send_signal(stop)
            command.wait(60)
            wait_for(lambda w=workers: not [one for one in w if one.is_running() and one.status() != "zombie"], 90)
        finally:
            _end(command)
    command = start(workplace, url, "--trials", "3", "--fine_tune.cycles", "3")
    printed, _ = command.communicate(timeout=400)
    assert command.returncode == 0, printed
    study = study_at(url)
    finished = in_state(study, TrialState.COMPLETE, TrialState.PRUNED)
    assert len(finished) == 3
    assert not in_state(study, TrialState.RUNNING, TrialState.WAITING)
    assert not [run for run in workplace.runs() if run.info.status == "RUNNING"]
    assert len([run for run in workplace.runs(stage="sweep") if "thaw.reused" not in run.data.tags]) == 1


def test_a_second_command_joins_the_study_of_the_first(workplace: Workplace, tmp_path: Path) -> None:
    with postgres_server(tmp_path) as url:
        commands = [start(workplace, url, "--trials", "5", "--sweep.pruner", "none") for _ in range(2)]
        try:
            printed = [command.communicate(timeout=500)[0] for command in commands]
        finally:
            for command in commands:
                _end(command)
        assert [command.returncode for command in commands] == [0, 0], "\n\n".join(printed)
        assert sum("this command runs trials of it" in text for text in printed) == 1
        study = study_at(url)
        assert [trial.state for trial in study.trials if not trial.user_attrs.get("surplus")] == [
            TrialState.COMPLETE
        ] * 5
        assert len([run for run in workplace.runs(stage="sweep") if "thaw.reused" not in run.data.tags]) == 1
        assert len({run.data.tags["thaw.process"] for run in workplace.runs(stage="trial")}) >= 2


def _end(command: subprocess.Popen[str]) -> None:
    if command.poll() is None:
        for process in psutil.Process(command.pid).children(recursive=True):
            process.kill()
        command.kill()
