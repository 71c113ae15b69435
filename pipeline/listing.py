"""What every source of pictures gives: the pictures by name, and what is said of each, before any is opened."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class Listing:
    """Pictures by path below `root`, with their labels, and what is no picture (path, reason).

    `splits` is None where none is given, and "" for a picture whose split is not; `groups` likewise. `weights` is None
    where all weigh 1.
    """

    name: str
    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None = None
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    groups: list[str] | None = None
    weights: list[float] | None = None


def check_listing(listing: Listing, source: str, how: str) -> None:
    """UserError where one cannot train on these pictures of `source`; `how` says how classes are given there."""
    classes = sorted(set(listing.labels))
    if not classes:
        raise UserError(f"data.source is {source}, where there is no {how}.")
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
    for split, place in (("train", "train/"), ("valid", "the validation folder")):
        missing = next((label for label in classes if (label, split) not in present), None)
        if split in given and missing is not None:
            raise UserError(f"The class {missing} has no picture in {place}; add some, or remove its others.")
