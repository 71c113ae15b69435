"""Where commands and stages run in a test: a folder with pictures, a cache and a tracking database of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from pipeline.data.readers.sources import list_source
from tests.forked_processes import fork_command

PROJECT = Path(__file__).parents[1]
# A guard against commands that hang, on a machine however busy.
LONGEST_SECONDS = 1200
# By these a test's own surroundings could lead a run elsewhere.
NOT_INHERITED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True)
class Workplace:
    """The `folder`, and the `experiment` that commands are told; an empty name leaves the choice to them."""

    folder: Path
    experiment: str = "cells"

    @property
    def pictures(self) -> Path:
        return self.folder / "cells"

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def variables(self) -> dict[str, str]:
        """What tells a command to work here."""
        told = {"THAW_CACHE": f"{self.folder}/cache", "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        return told | ({"MLFLOW_EXPERIMENT_NAME": self.experiment} if self.experiment else {})

    def environment(self) -> dict[str, str]:
        """Of a process that works here."""
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return inherited | self.variables() | {"PATH": path}

    @contextmanager
    def entered(self) -> Iterator[Path]:
        """Within the block the stages of this very process work here; gives the folder."""
        with pytest.MonkeyPatch.context() as patch:
            for name in NOT_INHERITED:
                patch.delenv(name, raising=False)
            for name, value in self.variables().items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            yield self.folder

    def mlflow_run(self, *arguments: str, expect: int = 0) -> str:
        """What `mlflow run . --env-manager local` with these arguments prints."""
        command = ["mlflow", "run", ".", "--env-manager", "local", *arguments]
        done = subprocess.run(
            command, cwd=PROJECT, env=self.environment(), capture_output=True, text=True, timeout=LONGEST_SECONDS
        )
        assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
        return done.stdout + done.stderr

    def command(self, name: str, *settings: str, expect: int = 0) -> str:
        """What `python -m stages NAME`, with settings such as "seed=1", prints."""
        process = fork_command("stages", [name, *(f"--{setting}" for setting in settings)], self.environment())
        printed, _ = process.communicate(LONGEST_SECONDS)
        assert process.returncode == expect, printed
        return printed

    def runs(self, experiment: str = "", **tags: str) -> list[mlflow.entities.Run]:
        """The runs of an experiment, by default its own, with these `thaw.` tags, oldest first."""
        found = self.client.get_experiment_by_name(experiment or self.experiment)
        query = " and ".join(f"tags.`thaw.{key}` = '{value}'" for key, value in tags.items())
        order = ["attributes.start_time ASC"]
        return self.client.search_runs([found.experiment_id], query, order_by=order) if found else []


def new_workplace(folder: Path, empty_database: Path, experiment: str = "cells") -> Workplace:
    """A workplace in this folder, whose experiment keeps its artifacts there too."""
    folder.mkdir(exist_ok=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    made = Workplace(folder, experiment)
    made.client.create_experiment(experiment, artifact_location=str(folder / "artifacts"))
    return made


def copy_cells(folder: Path, per_class: int) -> None:
    """Real pictures of solar cells, in a folder for each class."""
    listing = list_source("elpv", [])
    for label in ("defective", "functional"):
        (folder / label).mkdir(parents=True)
        chosen = [path for path, of in zip(listing.paths, listing.labels, strict=True) if of == label]
        for path in chosen[:: len(chosen) // per_class][:per_class]:
            shutil.copy(listing.root / path, folder / label)
