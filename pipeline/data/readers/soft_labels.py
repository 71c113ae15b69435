"""Soft labels: the probability of each class for each picture, where nobody can say which one it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.system.errors import UserError
from pipeline.system.text import plain_name

PREFIX = "probability/"
# A picture whose likeliest class has a smaller share than this is uncertain.
CERTAIN_FROM = 0.9
# How far from 1 the probabilities of a picture may add up, since they are rounded in tables.
TOLERANCE = 0.01
DIGITS = 6


@dataclass(frozen=True)
class SoftLabels:
    """For each picture the `shares` of the `classes` in its label, which add up to 1."""

    classes: list[str]
    shares: list[tuple[float, ...]]

    def labels(self) -> list[str]:
        """The likeliest class of each picture, of several the first by name."""
        return [min(self._likeliest(shares)) for shares in self.shares]

    def weights(self, uncertain_weight: float) -> list[float]:
        """1 for each picture, or `uncertain_weight` where no class is likely enough."""
        return [1.0 if max(shares) >= CERTAIN_FROM else uncertain_weight for shares in self.shares]

    def ties(self) -> int:
        """How many pictures have several likeliest classes."""
        return sum(len(self._likeliest(shares)) > 1 for shares in self.shares)

    def _likeliest(self, shares: tuple[float, ...]) -> list[str]:
        largest = max(shares)
        return [name for name, share in zip(self.classes, shares, strict=True) if share == largest]


def class_columns(header: Sequence[str], others: Sequence[str], table: Path) -> dict[str, int]:
    """The index of each column of a table that holds the probabilities of a class, by the class; none if it has labels.

    They are those whose names begin with PREFIX, or, if none does, all but those named `others`, if they are several.
    UserError if two are of one class.
    """
    lowered = [name.strip().lower() for name in header]
    if "label" in lowered:
        return {}
    named = [index for index, name in enumerate(lowered) if name.startswith(PREFIX)]
    further = [index for index, name in enumerate(lowered) if name and name not in others]
    found: dict[str, int] = {}
    for index in named or (further if len(further) > 1 else []):
        label = plain_name(header[index].strip()[len(PREFIX) if named else 0 :])
        if found.setdefault(label, index) != index:
            raise UserError(f"{table} has two columns for the class {label}; keep one of them.")
    return found


def read_shares(cells: Mapping[str, str], where: str) -> tuple[float, ...]:
    """The shares of the classes in a row's `cells`; an empty one is 0. UserError for what are no probabilities."""
    shares = [_share(name, text, where) for name, text in cells.items()]
    total = sum(shares)
    if abs(total - 1) > TOLERANCE:
        raise UserError(
            f"{where} has probabilities of {', '.join(cells)} that add up to {total:.4g}; they have to add up to 1."
        )
    return tuple(round(share / total, DIGITS) for share in shares)


def note_ties(soft: SoftLabels) -> list[str]:
    """A sentence on the pictures that have several likeliest classes, if there are any."""
    ties = soft.ties()
    if not ties:
        return []
    return [
        f"{ties:,} of {len(soft.shares):,} pictures have several likeliest classes; where one class is needed (splits, "
        "validation, test) they count as the first of them by name."
    ]


def check_likeliest(soft: SoftLabels, source: str) -> None:
    """UserError if a class is the likeliest of no picture."""
    labels = set(soft.labels())
    never = next((name for name in soft.classes if name not in labels), None)
    if never is not None:
        raise UserError(
            f"{source} has the class {never}, which is the likeliest of no picture, so that nothing shows whether it "
            "is learned; remove its column, or add pictures of it."
        )


def _share(name: str, text: str, where: str) -> float:
    try:
        share = float(text or 0)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1 + TOLERANCE:
        raise UserError(
            f"{where} has {text!r} in the column {name}, which is no probability from 0 to 1. In a table without the "
            f"column label, columns named {PREFIX}CLASS, or else all but path, split, group and weight, are the "
            "probabilities of classes."
        )
    return share
