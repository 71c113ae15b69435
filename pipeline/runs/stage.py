"""What a stage is, and the work of a run of it. Loads nothing heavy, so that the table of stages is read at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.training.records import EpochRecord

RECIPE_FILE = "recipe.yaml"
# The folder of a training run's files with the networks that its cycles ended with.
SNAPSHOTS = "snapshots"
AfterEpoch: TypeAlias = Callable[[EpochRecord], None]


@dataclass(frozen=True)
class Stage:
    """A stage's `name`; the recipe's `sections` that it reads; the stages that it may `follow`; the artifacts that a
    finished run of it must hold; and `checks` of the recipe, which warn or raise UserError before anything heavy is
    imported.

    Its runs are called `title`, where that says more than the name; `short_for` maps a short name on the command line
    to the key of the recipe that it stands for.
    """

    name: str
    sections: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    title: str = ""
    short_for: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Callable[[Any], None], ...] = ()


def ignore_epoch(record: EpochRecord) -> None:
    """The default `after_epoch`: does nothing."""


@dataclass(frozen=True)
class Job:
    """A stage's work: the id of the run that is open for it, and the folder for backups, which is removed when the
    stage has finished. A stage that trains calls `after_epoch` with each epoch's record, those of a backup that it
    resumes from included; that may end it by raising `Pruned`."""

    run_id: str
    folder: Path
    after_epoch: AfterEpoch = ignore_epoch


def seed_name(stage: str, seed: int) -> str:
    """The name of a stage's run of a further network, by another seed: `fine_tune seed 4`."""
    return f"{stage} seed {seed}"


def step_name(stage: str, number: int) -> str:
    """The name of a stage's run that is the first, second, … of its kind: `resize`, `resize 2`, …."""
    return stage if number == 1 else f"{stage} {number}"
