"""Which split each picture falls into: as given, as a share of what is not, and never parting what belongs together.

Copies of a picture (the same content) belong together, and so do the pictures of a group, such as those of one patient:
a network that was trained on one of them has seen too much of the others to be judged by them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.errors import UserError
from pipeline.splits import grouped_split, stratified_split

SPLITS = ("train", "valid", "test")
MOVED_COLUMNS = ["path", "moved_from", "moved_to", "same_as"]


def assign_splits(
    table: pd.DataFrame, valid_fraction: float, test_fraction: float, seed: int
) -> tuple[list[str], pd.DataFrame]:
    """The split of each row of `table` (`path`, `label`, `hash`, and `split` and `group`, "" where there is none), and
    a table of the rows that were given to another one (MOVED_COLUMNS).

    What is not given is split by the fractions, among train and the splits that no row is given to. Copies that are
    given to several splits all go to the first of train, valid and test, so that those held out stay unseen. Where
    none is given to valid, `valid_fraction` of the training pictures is. Raises UserError if a group is given to
    several splits, or if no picture is left in a split.
    """
    _check_groups(table)
    given = table["split"].tolist()
    has_groups = bool((table["group"] != "").any())
    units = _units(table["hash"].tolist(), table["group"].tolist()) if has_groups else table["hash"].tolist()
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
    for part, shares in (("", open_fractions), ("train", {"valid": valid_fraction})):
        rows = [row for row, name in enumerate(splits) if name == part]
        if part == "" or "valid" not in splits:
            parts = split([labels[row] for row in rows], [units[row] for row in rows], shares, "train", seed)
            for row, name in zip(rows, parts, strict=True):
                splits[row] = name
    return splits, moved


def contradictions(table: pd.DataFrame) -> dict[int, str]:
    """Rows of `table` (`path`, `label`, `hash`; its index counts them) whose content lies in another class as well,
    with the reason not to trust either."""
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
    """Rows whose hash begins as another's does, all copies among them; numbers take less memory than text."""
    starts = np.fromiter((int(content[:16] or "0", 16) for content in hashes), np.uint64, len(hashes))
    _, first, counts = np.unique(starts, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[first] > 1)


def _check_groups(table: pd.DataFrame) -> None:
    given = table[(table["group"] != "") & (table["split"] != "")].drop_duplicates(["group", "split"])
    parted = given[given.duplicated("group", keep=False)]
    if len(parted):
        first, second = parted[parted["group"] == parted["group"].iloc[0]].iloc[:2].itertuples()
        raise UserError(
            f"The group {first.group} is given to two splits: {first.path} to {first.split} and {second.path} to "
            f"{second.split}; give all of it to one."
        )


def _units(hashes: Sequence[str], groups: Sequence[str]) -> list[str]:
    """A name for each picture that it shares with what must not be parted from it: those of its group, copies of them,
    the groups of those copies, and so on."""
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
    """For each row the first of SPLITS that a row of its unit is given to, or ""."""
    rank = {name: place for place, name in enumerate((*SPLITS, ""))}
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
