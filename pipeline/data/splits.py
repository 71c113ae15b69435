"""Seeded, stratified splits into train, valid and test; copies and groups of pictures always stay in one split."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.system.arrays import Rows
from pipeline.system.errors import UserError

SPLITS = ("train", "valid", "test")
MOVED_COLUMNS = ["path", "moved_from", "moved_to", "same_as"]


def stratified_split(
    labels: Sequence[int], hashes: Sequence[str], fractions: dict[str, float], rest: str, seed: int
) -> list[str]:
    """The name of each picture's split: `fractions` of every class, rounded to whole pictures, and `rest`.

    A class of more pictures than there are splits has at least one in each of them. Pictures of one class with the
    same content are in the same split.
    """
    names = [rest] * len(labels)
    wanted = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    for rows in _ranked_by_class(labels, hashes, f"split/{seed}"):
        start = 0
        for index, (name, fraction) in enumerate(wanted.items()):
            splits_left = len(wanted) - index
            count = max(round(fraction * len(rows)), 1 if len(rows) > len(wanted) else 0)
            end = start + max(min(count, len(rows) - start - splits_left), 0)
            while start < end < len(rows) and hashes[rows[end]] == hashes[rows[end - 1]]:
                end += 1
            for row in rows[start:end]:
                names[row] = name
            start = end
    return names


def grouped_split(
    labels: Sequence[int], groups: Sequence[str], fractions: dict[str, float], rest: str, seed: int
) -> list[str]:
    """The name of each picture's split: about `fractions` of every class, and `rest`, with each group in one of them.

    Groups are assigned one by one, in random order but large ones first, each to the split that lacks most of its
    share of the group's classes, as scikit-learn's StratifiedGroupKFold does. A class of more groups than there are
    splits has at least one in each of them if that is possible.
    """
    shares = {rest: 1 - sum(fractions.values())} | {name: share for name, share in fractions.items() if share > 0}
    class_totals = Counter(labels)
    members: dict[str, Counter[int]] = {}
    for label, group in zip(labels, groups, strict=True):
        members.setdefault(group, Counter())[label] += 1
    groups_left = Counter(label for counts in members.values() for label in counts)
    given = {name: Counter[int]() for name in shares}
    chosen: dict[str, str] = {}

    def misfit(name: str, counts: Counter[int]) -> tuple[int, float]:
        """The cost of giving `counts` to the split `name`: the number of classes that another split would then lack,
        and how much more than before the split would differ from its share, squared."""
        left_out, change = 0, 0.0
        for label, count in counts.items():
            empty = sum(given[other][label] == 0 for other in shares)
            left_out += given[name][label] > 0 and groups_left[label] <= empty
            wanted = shares[name] * class_totals[label]
            change += count * (2 * (given[name][label] - wanted) + count) / wanted
        return left_out, change

    def order(group: str) -> tuple[int, str]:
        return -members[group].total().bit_length(), hashlib.sha256(f"group/{seed}/{group}".encode()).hexdigest()

    for group in sorted(members, key=order):
        counts = members[group]
        chosen[group] = min(shares, key=lambda name: misfit(name, counts))
        given[chosen[group]].update(counts)
        groups_left.subtract(counts.keys())
    return [chosen[group] for group in groups]


def stratified_fraction(labels: Sequence[int], hashes: Sequence[str], fraction: float, seed: int) -> Rows:
    """Row numbers, in ascending order, of `fraction` of every class, rounded up.

    For one seed, a larger fraction contains all rows of a smaller one.
    """
    kept: list[int] = []
    for rows in _ranked_by_class(labels, hashes, f"fraction/{seed}"):
        kept += rows[: math.ceil(round(fraction * len(rows), 9))]
    return np.array(sorted(kept), dtype=np.int64)


def assign_folds(labels: Sequence[int], units: Sequence[str], folds: int, seed: int) -> Rows:
    """The fold, from 0 to `folds` - 1, of each picture: those of a unit are in one, and each class is spread over all.

    Units are assigned one by one, in random order but large ones first, each to the fold that has the fewest pictures
    of its most frequent class; of several such folds to the smallest.
    """
    members: dict[str, Counter[int]] = {}
    for label, unit in zip(labels, units, strict=True):
        members.setdefault(unit, Counter())[label] += 1
    of_class = {label: [0] * folds for label in labels}
    of_all, chosen = [0] * folds, dict[str, int]()

    def order(unit: str) -> tuple[int, str]:
        return -members[unit].total().bit_length(), hashlib.sha256(f"fold/{seed}/{unit}".encode()).hexdigest()

    for unit in sorted(members, key=order):
        ((label, _),) = members[unit].most_common(1)
        fold = min(range(folds), key=lambda one: (of_class[label][one], of_all[one]))
        chosen[unit] = fold
        of_all[fold] += members[unit].total()
        for each, count in members[unit].items():
            of_class[each][fold] += count
    return np.array([chosen[unit] for unit in units], dtype=np.int64)


def _ranked_by_class(labels: Sequence[int], hashes: Sequence[str], salt: str) -> list[list[int]]:
    """For each class its row numbers, in an order that depends only on the salt and the pictures' contents."""
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        by_class.setdefault(label, []).append(row)

    def rank(row: int) -> bytes:
        return hashlib.sha256(f"{salt}/{hashes[row]}".encode()).digest()

    return [sorted(by_class[label], key=rank) for label in sorted(by_class)]


def assign_splits(
    table: pd.DataFrame, valid_fraction: float, test_fraction: float, seed: int
) -> tuple[list[str], pd.DataFrame]:
    """The split of each row of `table` (`path`, `label`, `hash`, and `split` and `group`, "" if there is none), and a
    table of the rows that were moved to another split (MOVED_COLUMNS).

    Rows without a split are split by the fractions, into train and those splits that no row names. Copies in several
    splits all go to the first of train, valid and test, so that held-out pictures stay unseen. If no row names valid,
    it gets `valid_fraction` of the training pictures. Raises UserError if a group is given to several splits, or if no
    picture is left in a split.
    """
    _check_groups(table)
    given = table["split"].tolist()
    has_groups = bool((table["group"] != "").any())
    units = units_of(table["hash"].tolist(), table["group"].tolist()) if has_groups else table["hash"].tolist()
    splits = _earliest(units, given)
    moved = _moved(table, units, splits)
    labels = pd.factorize(table["label"], sort=True)[0].tolist()
    named = {split for split in given if split}
    for split in named - set(splits):
        raise UserError(
            f"Every picture that is given to {split} has a copy that is given to an earlier split, such as "
            f"{moved['path'].iloc[0]} and {moved['same_as'].iloc[0]}; give it pictures of its own."
        )
    fractions = {"test": test_fraction, "valid": valid_fraction}
    open_fractions = {name: fraction for name, fraction in fractions.items() if name not in named}
    split = grouped_split if has_groups else stratified_split
    for divided, shares in (("", open_fractions), ("train", {"valid": valid_fraction})):
        rows = [row for row, name in enumerate(splits) if name == divided]
        if divided == "" or "valid" not in splits:
            names = split([labels[row] for row in rows], [units[row] for row in rows], shares, "train", seed)
            for row, name in zip(rows, names, strict=True):
                splits[row] = name
    return splits, moved


def contradictions(table: pd.DataFrame) -> dict[int, str]:
    """Rows of `table` (`path`, `label`, `hash`, with a default index) whose content is in another class too, each with
    the reason why it cannot be used."""
    copies = table.iloc[_alike(table["hash"])]
    copies = copies[copies.duplicated("hash", keep=False)]
    found = {}
    for _, same in copies.groupby("hash", sort=False):
        first_of_label = same.drop_duplicates("label")
        if len(first_of_label) > 1:
            for row, label in zip(same.index.tolist(), same["label"], strict=True):
                other = first_of_label[first_of_label["label"] != label].iloc[0]
                found[row] = f"has the same content as {other['path']}, of the class {other['label']}"
    return found


def _alike(hashes: "pd.Series[str]") -> npt.NDArray[np.int64]:
    """Rows whose hash begins like another's, which include all copies; numbers take less memory than text."""
    starts = np.fromiter((int(content[:16] or "0", 16) for content in hashes), np.uint64, len(hashes))
    _, first, counts = np.unique(starts, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[first] > 1)


def _check_groups(table: pd.DataFrame) -> None:
    given = table[(table["group"] != "") & (table["split"] != "")].drop_duplicates(["group", "split"])
    divided = given[given.duplicated("group", keep=False)]
    if len(divided):
        first, second = divided[divided["group"] == divided["group"].iloc[0]].iloc[:2].itertuples()
        raise UserError(
            f"The group {first.group} is given to two splits: {first.path} to {first.split} and {second.path} to "
            f"{second.split}; give all of it to one."
        )


def units_of(hashes: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The name of each picture's unit, the pictures that must stay in one split: those of its group ("" is none), their
    copies, the groups of these copies, and so on."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for content, group in zip(hashes, groups, strict=True):
        # The smaller name wins, so that names do not depend on the order of the pictures.
        first, second = sorted((root(content), root(f"group {group}" if group else content)))
        parent[second] = first
    return [root(content) for content in hashes]


def _earliest(units: Sequence[str], given: Sequence[str]) -> list[str]:
    """For each row the first of SPLITS that is given to a row of its unit, or ""."""
    rank = {name: index for index, name in enumerate((*SPLITS, ""))}
    of_unit: dict[str, str] = {}
    for unit, split in zip(units, given, strict=True):
        of_unit[unit] = min(of_unit.get(unit, ""), split, key=rank.__getitem__)
    return [of_unit[unit] for unit in units]


def _moved(table: pd.DataFrame, units: Sequence[str], splits: Sequence[str]) -> pd.DataFrame:
    facts = table[["path", "hash", "split"]].assign(unit=units, moved_to=splits)
    moves = facts[(facts["split"] != "") & (facts["split"] != facts["moved_to"])]
    staying = facts[facts["unit"].isin(moves["unit"]) & (facts["split"] == facts["moved_to"])]
    by_content = dict(zip(staying["hash"][::-1], staying["path"][::-1], strict=True))
    by_unit = dict(zip(staying["unit"][::-1], staying["path"][::-1], strict=True))
    same_as = [by_content.get(row.hash, by_unit[row.unit]) for row in moves.itertuples()]
    return pd.DataFrame(
        {"path": moves["path"], "moved_from": moves["split"], "moved_to": moves["moved_to"], "same_as": same_as},
        columns=MOVED_COLUMNS,
    ).reset_index(drop=True)
