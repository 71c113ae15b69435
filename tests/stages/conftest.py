"""A few real pictures, and the project's commands as a user types them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pytest

from pipeline.data.manifest import Manifest, load_manifest
from pipeline.data.readers.sources import list_source
from pipeline.recipe.schema import Recipe
from stages import evaluate, fine_tune, lr_find, precompute, resize, train_head
from tests.forked_processes import fork_command
from tests.stages.wiring import Seen, draw_pictures, recipe_on, run_watched

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Workplace:
    """A folder with pictures, a cache and a tracking database of its own."""

    folder: Path

    @property
    def pictures(self) -> Path:
        return self.folder / "cells"

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "THAW_CACHE": str(self.folder / "cache"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "MLFLOW_EXPERIMENT_NAME": "cells",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "2",
        }

    def mlflow_run(self, *arguments: str, expect: int = 0) -> str:
        """What `mlflow run . --env-manager local` with these arguments prints."""
        command = ["mlflow", "run", ".", "--env-manager", "local", *arguments]
        done = subprocess.run(command, cwd=PROJECT, env=self.environment(), capture_output=True, text=True, timeout=280)
        assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
        return done.stdout + done.stderr

    def command(self, name: str, *settings: str, expect: int = 0) -> str:
        """What `python -m stages NAME`, with settings such as "seed=1", prints."""
        process = fork_command("stages", [name, *(f"--{setting}" for setting in settings)], self.environment())
        printed, _ = process.communicate(280)
        assert process.returncode == expect, printed
        return printed

    def runs(self, **tags: str) -> list[mlflow.entities.Run]:
        """The runs with these `thaw.` tags, oldest first."""
        experiment = self.client.get_experiment_by_name("cells")
        query = " and ".join(f"tags.`thaw.{key}` = '{value}'" for key, value in tags.items())
        return self.client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time ASC"])


def copy_cells(folder: Path, per_class: int) -> None:
    """Real pictures of solar cells, in a folder for each class."""
    listing = list_source("elpv", [])
    for label in ("defective", "functional"):
        (folder / label).mkdir(parents=True)
        chosen = [path for path, of in zip(listing.paths, listing.labels, strict=True) if of == label]
        for path in chosen[:: len(chosen) // per_class][:per_class]:
            shutil.copy(listing.root / path, folder / label)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    copy_cells(place.pictures, 32)
    (place.pictures / "functional" / "broken.png").write_bytes(b"\x89PNG but no more")
    (place.pictures / "functional" / "notes.txt").write_text("no picture")
    place.client.create_experiment("cells", artifact_location=str(place.folder / "artifacts"))
    return place


@pytest.fixture(scope="session")
def smoke(workplace: Workplace) -> Callable[..., str]:
    """A command on the smoke recipe and the workplace's pictures."""

    def run(name: str, *settings: str, expect: int = 0) -> str:
        return workplace.command(name, *on_smoke_recipe(workplace), *settings, expect=expect)

    return run


def on_smoke_recipe(workplace: Workplace) -> list[str]:
    return ["recipe=recipes/smoke.yaml", f"data={workplace.pictures}", "data.max_bad=0.05"]


@dataclass(frozen=True)
class Trained:
    """A run of main on the smoke recipe: what it printed, the run, and its nested runs in order."""

    printed: str
    parent: mlflow.entities.Run
    nested: list[mlflow.entities.Run]


def trained(workplace: Workplace, printed: str) -> Trained:
    parent = workplace.runs(stage="main")[-1]
    nested = [run for run in workplace.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return Trained(printed, parent, nested)


@pytest.fixture(scope="session")
def first(workplace: Workplace) -> Trained:
    """Trained once for all tests of whole commands, by `mlflow run`."""
    settings = [word for setting in on_smoke_recipe(workplace) for word in ("-P", setting)]
    return trained(workplace, workplace.mlflow_run(*settings))


@pytest.fixture(scope="session")
def again(workplace: Workplace, smoke: Callable[..., str], first: Trained) -> Trained:
    """The same command a second time."""
    return trained(workplace, smoke("main"))


@pytest.fixture(scope="session")
def second(workplace: Workplace, smoke: Callable[..., str], first: Trained) -> Trained:
    """Another run on the same pictures, whose later stages differ from the first one's."""
    return trained(workplace, smoke("main", "fine_tune.weight_decay=0.02"))


SPACE = "{fine_tune.cycle_len: {type: int, low: 1, high: 2}, fine_tune.lr: {type: log_uniform, low: 1e-4, high: 1e-2}}"


@dataclass(frozen=True)
class Swept:
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
def swept(workplace: Workplace, first: Trained) -> Swept:
    url = f"sqlite:///{workplace.folder}/sweeps.db"
    settings = [*on_smoke_recipe(workplace), f"storage={url}", f"sweep.space={SPACE}", "sweep.seeds=2"]
    words = [word for setting in settings for word in ("-P", setting)]
    printed = [workplace.mlflow_run("-e", "sweep", *words, "-P", f"trials={trials}") for trials in (2, 3)]
    (name,) = optuna.get_all_study_names(url)
    return Swept(workplace, printed, optuna.load_study(study_name=name, storage=url))


@dataclass(frozen=True)
class Chain:
    """What the stages of a recipe did, one after the other."""

    recipe: Recipe
    manifest: Manifest
    precompute: Seen
    lr_find: Seen
    train_head: Seen
    lr_find_unfrozen: Seen
    fine_tune: Seen
    resize: Seen
    evaluate: Seen


@pytest.fixture(scope="session")
def own_server(tmp_path_factory, empty_database) -> Callable[[], AbstractContextManager[Path]]:
    """A cache and a tracking database for stages that run in this process, within a block."""

    @contextmanager
    def serve() -> Iterator[Path]:
        folder = tmp_path_factory.mktemp("in process")
        shutil.copy(empty_database, folder / "mlflow.db")
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        experiment = mlflow.MlflowClient(uri).create_experiment("test", artifact_location=str(folder / "artifacts"))
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_RUN_ID", raising=False)
            patch.setenv("THAW_CACHE", str(folder / "cache"))
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            patch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
            patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
            patch.chdir(folder)
            yield folder

    return serve


@pytest.fixture(scope="session")
def chain(own_server) -> Chain:
    """Every stage, watched, on small pictures, by a recipe whose values differ from the defaults."""
    with own_server() as folder:
        recipe = recipe_on(draw_pictures(folder / "pictures"))
        first = run_watched(precompute.run, recipe)
        found = run_watched(lr_find.run, recipe, first)
        head = run_watched(train_head.run, recipe, first)
        head.before = first.network()
        unfrozen = run_watched(lr_find.run, recipe, head)
        tuned = run_watched(fine_tune.run, recipe, head)
        tuned.before = head.network()
        larger = run_watched(resize.run, recipe, tuned)
        larger.before = tuned.network()
        last = run_watched(evaluate.run, recipe, larger)
        return Chain(recipe, load_manifest(first.files / "manifest"), first, found, head, unfrozen, tuned, larger, last)
