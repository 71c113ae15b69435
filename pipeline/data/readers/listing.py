"""The result of every reader: the paths of the pictures with their labels, before any is opened."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Listing:
    """Pictures by their paths below `root`, with their labels; `set_aside` are the files left out (path, reason).

    `splits` is None if the source gives none, and "" for a picture without one; `groups` likewise. `weights` is None
    if all are 1.
    """

    name: str
    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None = None
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    groups: list[str] | None = None
    weights: list[float] | None = None


def check_listing(listing: Listing, source: str, missing: str) -> None:
    """UserError if these pictures of `source` cannot be trained on; `missing` names what it lacks if it has none."""
    classes = sorted(set(listing.labels))
    if not classes:
        raise UserError(f"data.source is {source}, where there is no {missing}.")
    if len(classes) == 1:
        raise UserError(
            f"data.source is {source}, which has one class alone, {classes[0]}; a classifier needs two or more."
        )
    given = set(listing.splits or [])
    if not given or "" in given:
        return
    if "train" not in given:
        raise UserError(f"data.source is {source}, which gives pictures to {min(given)} and none to train; add some.")
    present = set(zip(listing.labels, listing.splits or [], strict=True))
    for split, folder in (("train", "train/"), ("valid", "the validation folder")):
        absent = next((label for label in classes if (label, split) not in present), None)
        if split in given and absent is not None:
            raise UserError(f"The class {absent} has no picture in {folder}; add some, or remove its others.")
