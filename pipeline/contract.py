"""What a stage is, and how a finished run of one is spoken of; no heavy imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.fit import EpochRecord


def go_on(record: EpochRecord) -> None:
    """What is done after an epoch where nobody looks on: nothing."""


@dataclass(frozen=True)
class Stage:
    """A stage's `name`; the recipe's `sections` that it reads; the stages that it may `follow`; and the artifacts
    that a finished run of it must hold. Its runs are called `title`, where that says more than the name; `short_for`
    has the keys of the recipe that its command takes under a shorter name, by that name."""

    name: str
    sections: tuple[str, ...]
    follows: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    title: str = ""
    short_for: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRef:
    """A finished run of a stage. `upstream` is the run id that it followed; `reused` says that it was not run now."""

    run_id: str
    stage: str
    fingerprint: str
    upstream: str | None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class Job:
    """A stage's work: the run that is open for it, and the folder where what is in hand is kept, which outlives the
    run unless the stage gets done. A stage that trains calls `after_epoch` with each epoch's record, those included
    that it takes over from what was in hand; that may end it by raising `Pruned`."""

    run_id: str
    folder: Path
    after_epoch: Callable[[EpochRecord], None] = go_on
