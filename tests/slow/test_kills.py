"""`mlflow run` killed with -9 at twenty points spread over all stages, each time followed by the same command."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.workplace import PROJECT, Workplace, copy_cells

pytestmark = pytest.mark.slow

STAGES = ["precompute", "lr_find", "train_head", "lr_find", "fine_tune", "resize", "evaluate"]
WEIGHTS = {"train_head": "checkpoint", "fine_tune": "checkpoint", "resize": "checkpoint", "precompute": "activations"}
RECIPE = ["-P", "recipe=recipes/smoke.yaml", "-P", "fine_tune.cycles=3", "-P", "train_head.stored_epochs=10"]
KILLS = 20
VICTIMS = ("all", "all", "stage", "mlflow")


@dataclass
class Rehearsal:
    """The stages run one after another without a break: how long each took, what it made, and the tracking database
    and cache as they were before it."""

    place: Workplace
    seconds: list[float] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)

    def snapshot(self, number: int) -> Path:
        return self.place.folder / f"before_{number}"

    def keep(self, number: int) -> None:
        """Remember database and cache as they are before stage `number`."""
        self.snapshot(number).mkdir()
        with closing(sqlite3.connect(self.place.folder / "mlflow.db")) as source:
            source.execute(f"vacuum into '{self.snapshot(number) / 'mlflow.db'}'")
        shutil.copytree(self.place.folder / "cache", self.snapshot(number) / "cache")

    def go_back(self, number: int) -> None:
        """Put database and cache back to what they were before stage `number`."""
        # Within the file, which this process has open.
        before, now = self.snapshot(number) / "mlflow.db", self.place.folder / "mlflow.db"
        with closing(sqlite3.connect(before)) as source, closing(sqlite3.connect(now)) as target:
            source.backup(target)
        shutil.rmtree(self.place.folder / "cache")
        shutil.copytree(self.snapshot(number) / "cache", self.place.folder / "cache")


def content_of(run: mlflow.entities.Run) -> str:
    """A hash of the weights, or the activations, that a stage's run made."""
    folder = Path(run.info.artifact_uri) / WEIGHTS[run.data.tags["thaw.stage"]]
    digest = sha256()
    for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*.npy")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    place = Workplace(tmp_path_factory.mktemp("kills"))
    copy_cells(place.pictures, 40)
    place.client.create_experiment("cells", artifact_location=str(place.folder / "artifacts"))
    (place.folder / "cache").mkdir()
    made = Rehearsal(place)
    upstream: list[str] = []
    for number, stage in enumerate(STAGES):
        made.keep(number)
        of_recipe = [*RECIPE, "-P", f"data={place.pictures}"] if not upstream else ["-P", f"upstream={upstream[-1]}"]
        place.mlflow_run("-e", stage, *of_recipe)
        run = place.runs(stage=stage)[-1]
        upstream.append(run.info.run_id)
        made.seconds.append(run.data.metrics["stage_seconds"])
        if stage in WEIGHTS:
            made.weights[stage] = content_of(run)
    return made


def start(place: Workplace, log: Path) -> subprocess.Popen[bytes]:
    command = ["mlflow", "run", ".", "--env-manager", "local", *RECIPE, "-P", f"data={place.pictures}"]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=PROJECT, env=place.environment(), stdout=file, stderr=file, start_new_session=True
        )


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_text(errors="replace"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """Kill -9: the whole group at once, as a machine that vanishes; the stage's process; or MLflow's command, whose
    stage then ends by itself."""
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "stage":
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    else:
        orphans = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert not psutil.wait_procs(orphans, timeout=60)[1], "a stage outlives MLflow's command"
    process.wait()


def points() -> list[tuple[int, float, str]]:
    """(number of the stage, where in it from 0 to 1, who is killed), spread over all stages."""
    chance = random.Random(0)
    return [(one % len(STAGES), chance.random(), VICTIMS[one % len(VICTIMS)]) for one in range(KILLS)]


@pytest.mark.parametrize(("number", "share", "victim"), points())
def test_a_killed_recipe_ends_as_if_it_had_not_been_killed(rehearsal, tmp_path, number, share, victim):
    place, log = rehearsal.place, tmp_path / "log.txt"
    rehearsal.go_back(number)
    before = [run.info.run_id for run in place.runs(done="true")]
    process = start(place, log)
    words = f"{STAGES[number]}: started"
    wait_for(log, words, process)
    time.sleep(share * rehearsal.seconds[number])
    kill(process, victim)

    printed = place.mlflow_run(*RECIPE, "-P", f"data={place.pictures}")

    runs = place.runs()
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}, "a run stays open"
    done = [run for run in runs if run.data.tags.get("thaw.done") and run.data.tags["thaw.stage"] != "main"]
    assert len(done) == len(STAGES), f"a stage was done twice, or not at all:\n{printed}"
    reused = [line.split(":")[0] for line in printed.splitlines() if "reused run" in line]
    assert reused[:number] == STAGES[:number]
    assert [run.info.run_id for run in done[:number]] == before
    for run in done:
        stage = run.data.tags["thaw.stage"]
        if stage in WEIGHTS:
            assert content_of(run) == rehearsal.weights[stage], f"{stage} ended with other weights"
        for name in ("train/loss", "valid/accuracy", "rate_head"):
            steps = [point.step for point in place.client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), f"{stage} logged a step of {name} twice"
        if stage in ("train_head", "fine_tune", "resize"):
            facts = json.loads((Path(run.info.artifact_uri) / "checkpoint" / "checkpoint.json").read_text())
            assert (
                max(point.step for point in place.client.get_metric_history(run.info.run_id, "train/loss"))
                == (facts["steps"])
            )
