"""Stratified, seeded choices of pictures: the split, and the part of it that training starts with.

A picture's place is decided by a hash of the seed and of its content, so that the choice depends neither on
file names nor on their order, and a picture that is added later moves few others.
"""

import hashlib
import math
from collections import Counter
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


def grouped_split(
    labels: Sequence[int], groups: Sequence[str], fractions: dict[str, float], rest: str, seed: int
) -> list[str]:
    """The name of each picture's split: about `fractions` of every class, and `rest`, with no group in two of them.

    Groups are given out one by one, large before small and else by seed, each to the split that is then furthest
    behind its share of the group's classes, as scikit-learn's StratifiedGroupKFold does. A class of more groups than
    there are splits has one or more in each of them where that is possible.
    """
    shares = {rest: 1 - sum(fractions.values())} | {name: share for name, share in fractions.items() if share > 0}
    class_totals = Counter(labels)
    members: dict[str, Counter[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    still_to_come = Counter(label for counts in members.values() for label in counts)
    given = {name: Counter[int]() for name in shares}
    chosen: dict[str, str] = {}

    def misfit(name: str, counts: Counter[int]) -> tuple[int, float]:
        """How ill it is to give `counts` to the split `name`: classes that another split would then go without, and
        by how much more than before the split would differ from its share, squared."""
        left_out, change = 0, 0.0
        for label, count in counts.items():
            empty = sum(given[other][label] == 0 for other in shares)
            left_out += given[name][label] > 0 and still_to_come[label] <= empty
            wanted = shares[name] * class_totals[label]
            change += count * (2 * (given[name][label] - wanted) + count) / wanted
        return left_out, change

    def turn(group: str) -> tuple[int, str]:
        return -members[group].total().bit_length(), hashlib.sha256(f"group/{seed}/{group}".encode()).hexdigest()

    for group in sorted(members, key=turn):
        counts = members[group]
        chosen[group] = min(shares, key=lambda name: misfit(name, counts))
        given[chosen[group]].update(counts)
        still_to_come.subtract(counts.keys())
    return [chosen[group] for group in groups]


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
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{salt}/{hashes[row]}".encode()).digest()

    return [sorted(by_class[label], key=rank) for label in sorted(by_class)]
