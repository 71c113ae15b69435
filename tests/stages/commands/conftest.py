"""Commands as a user types them, on a few real pictures: a recipe that was trained, and a sweep over it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pytest

from tests.workplace import PROJECT, Workplace, copy_cells, new_workplace

SPACE = "{fine_tune.cycle_len: {type: int, low: 1, high: 2}, fine_tune.lr: {type: log_uniform, low: 1e-4, high: 1e-2}}"


# A command in a Python of its own, which prints at its end what it has loaded.
LISTS_ITS_MODULES = """
import sys
from stages.__main__ import main
try:
    main()
finally:
    print("loaded:", *sorted(name for name in sys.modules if "." not in name))
"""


@dataclass(frozen=True)
class MainRun:
    """A run of main on the smoke recipe: what it printed, the run, and its nested runs in order."""

    printed: str
    parent: mlflow.entities.Run
    nested: list[mlflow.entities.Run]

    def stage(self, name: str) -> mlflow.entities.Run:
        """The nested run of this name; the finder's second is called lr_find (unfrozen)."""
        (run,) = [run for run in self.nested if run.info.run_name == name]
        return run

    def files(self, name: str) -> Path:
        """Those of that run."""
        return Path(self.stage(name).info.artifact_uri)


@dataclass(frozen=True)
class FinishedSweep:
    """A sweep of two trials, and what it printed when a third was asked for."""

    workplace: Workplace
    printed: list[str]
    study: optuna.Study

    @property
    def parent(self) -> mlflow.entities.Run:
        return self.workplace.client.get_run(self.study.user_attrs["run_id"])

    def trials(self) -> list[mlflow.entities.Run]:
        return self.workplace.runs(stage="trial")

    def artifact(self, name: str) -> Path:
        return Path(self.parent.info.artifact_uri) / name


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Workplace:
    """With 32 pictures of each of two classes, beside a broken one and a file that is none."""
    place = new_workplace(tmp_path_factory.mktemp("workplace"), empty_database)
    copy_cells(place.pictures, 32)
    (place.pictures / "functional" / "broken.png").write_bytes(b"\x89PNG but no more")
    (place.pictures / "functional" / "notes.txt").write_text("no picture")
    return place


def on_smoke_recipe(workplace: Workplace) -> list[str]:
    return ["recipe=recipes/smoke.yaml", f"data={workplace.pictures}", "data.max_bad=0.05"]


def _last_main(workplace: Workplace, printed: str) -> MainRun:
    parent = workplace.runs(stage="main")[-1]
    nested = [run for run in workplace.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return MainRun(printed, parent, nested)


@pytest.fixture(scope="session")
def main(workplace: Workplace) -> MainRun:
    """By `mlflow run`, once for all tests of whole commands."""
    settings = [word for setting in on_smoke_recipe(workplace) for word in ("-P", setting)]
    return _last_main(workplace, workplace.mlflow_run(*settings))


@pytest.fixture(scope="session")
def main_again(workplace: Workplace, main: MainRun) -> MainRun:
    """By the same command a second time; at its end it prints the modules that it has loaded."""
    words = ["main", *(f"--{setting}" for setting in on_smoke_recipe(workplace))]
    command = [sys.executable, "-c", LISTS_ITS_MODULES, *words]
    done = subprocess.run(command, cwd=PROJECT, env=workplace.environment(), capture_output=True, text=True, check=True)
    return _last_main(workplace, done.stdout)


@pytest.fixture(scope="session")
def main_otherwise(workplace: Workplace, main: MainRun) -> MainRun:
    """On the same pictures, with later stages that differ from the first run's."""
    changed = "fine_tune.warm_up=0.1"
    return _last_main(workplace, workplace.command("main", *on_smoke_recipe(workplace), changed))


@pytest.fixture(scope="session")
def sweep(workplace: Workplace, main: MainRun) -> FinishedSweep:
    """By `mlflow run`, whose first trial is the recipe that was trained."""
    url = f"sqlite:///{workplace.folder}/sweeps.db"
    settings = [*on_smoke_recipe(workplace), f"storage={url}", f"sweep.space={SPACE}", "sweep.seeds=2"]
    settings += ["sweep.pruner=none"]  # on so few pictures it ends a trial by chance
    words = [word for setting in settings for word in ("-P", setting)]
    printed = [workplace.mlflow_run("-e", "sweep", *words, "-P", f"trials={trials}") for trials in (2, 3)]
    (name,) = optuna.get_all_study_names(url)
    return FinishedSweep(workplace, printed, optuna.load_study(study_name=name, storage=url))
