"""Stratified, seeded choices of pictures: the split, and the part of it that training starts with.

A picture's place is decided by a hash of the seed and of its content, so that the choice depends neither on
file names nor on their order, and a picture that is added later moves few others.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def stratified_split(
    labels: Sequence[int], hashes: Sequence[str], fractions: dict[str, float], rest: str, seed: int
) -> list[str]:
    """The name of each picture's split: `fractions` of every class, to the nearest picture, and `rest`.

    A class of more pictures than there are splits has one or more in each of them. Pictures of one
    class with the same content are never parted.
    """
    names = [rest] * len(labels)
    wanted = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    for rows in _ranked_by_class(labels, hashes, f"split/{seed}"):
        start = 0
        for index, (name, fraction) in enumerate(wanted.items()):
            still_to_come = len(wanted) - index
            count = max(round(fraction * len(rows)), 1 if len(rows) > len(wanted) else 0)
            end = start + max(min(count, len(rows) - start - still_to_come), 0)
            while start < end < len(rows) and hashes[rows[end]] == hashes[rows[end - 1]]:
                end += 1
            for row in rows[start:end]:
                names[row] = name
            start = end
    return names


def stratified_fraction(labels: Sequence[int], hashes: Sequence[str], fraction: float, seed: int) -> Rows:
    """Row numbers, in growing order, of `fraction` of every class, rounded up.

    For one seed, the rows of a smaller fraction all lie within those of a larger one.
    """
    kept: list[int] = []
    for rows in _ranked_by_class(labels, hashes, f"fraction/{seed}"):
        kept += rows[: math.ceil(round(fraction * len(rows), 9))]
    return np.array(sorted(kept), dtype=np.int64)


def _ranked_by_class(labels: Sequence[int], hashes: Sequence[str], salt: str) -> list[list[int]]:
    """For each class its row numbers, in an order that the salt and the pictures' contents alone decide."""
    by_class: dict[int, list[tuple[str, int]]] = {}
    for row, (label, content) in enumerate(zip(labels, hashes, strict=True)):
        rank = hashlib.sha256(f"{salt}/{content}".encode()).hexdigest()
        by_class.setdefault(label, []).append((rank, row))
    return [[row for _, row in sorted(by_class[label])] for label in sorted(by_class)]
