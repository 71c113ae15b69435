"""The result of every reader: the paths of the pictures with their labels, before any is opened."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.readers.corrections_file import Correction
from pipeline.data.readers.soft_labels import SoftLabels
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Listing:
    """Pictures by their paths below `root`, with their labels; `set_aside` are the files left out (path, reason).

    `splits` is None if the source gives none, and "" for a picture without one; `groups` likewise. `weights` is None
    if all are 1; `notes` are sentences for the user; `corrections` of labels are by content hash, and not applied yet.
    Where labels are `soft`, `labels` are the likeliest classes.
    Pictures that are not on disk have `addresses`, by path, and `root` is where in the cache they are fetched to;
    `missing` are those that could not be fetched, with the reason.
    """

    name: str
    root: Path
    paths: list[str]
    labels: list[str]
    splits: list[str] | None = None
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    groups: list[str] | None = None
    weights: list[float] | None = None
    notes: list[str] = field(default_factory=list)
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    soft: SoftLabels | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


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


def note_look_alikes(labels: Iterable[str]) -> list[str]:
    """A sentence for each set of classes whose names differ in nothing that stands out, such as Cat and cat."""
    alike: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        alike.setdefault(_skeleton(label), []).append(label)
    return [
        f"The classes {', '.join(names)} differ "
        f"{'in case alone' if len({name.casefold() for name in names}) == 1 else 'in nothing that is easily seen'} and "
        "are learned as different classes; give them one name if they are one class."
        for names in alike.values()
        if len(names) > 1
    ]


def _skeleton(label: str) -> str:
    """`label` without case, blanks, and characters that take no room."""
    letters = unicodedata.normalize("NFKC", label).casefold()
    return "".join(letter for letter in letters if unicodedata.category(letter) not in ("Cf", "Zs", "Cc"))
