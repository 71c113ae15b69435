import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from pipeline.data.splits import (
    assign_folds,
    assign_splits,
    contradictions,
    grouped_split,
    stratified_fraction,
    stratified_split,
    units_of,
)
from pipeline.system.errors import UserError

FRACTIONS = {"test": 0.25, "valid": 0.15}


def pictures(*counts, start=0):
    """Labels and content hashes of so many pictures of class 0, 1, …"""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return labels, [hashlib.sha256(f"{start + row}".encode()).hexdigest() for row in range(len(labels))]


def split(labels, hashes, fractions=FRACTIONS, seed=0):
    return stratified_split(labels, hashes, fractions, "train", seed)


def test_each_class_is_split_by_the_same_fractions():
    labels, hashes = pictures(200, 40)
    counts = Counter(zip(labels, split(labels, hashes), strict=True))
    assert counts == {
        (0, "test"): 50,
        (0, "valid"): 30,
        (0, "train"): 120,
        (1, "test"): 10,
        (1, "valid"): 6,
        (1, "train"): 24,
    }


def test_the_split_is_the_same_for_the_same_seed_and_another_for_another():
    labels, hashes = pictures(100)
    assert split(labels, hashes) == split(labels, hashes)
    assert split(labels, hashes) != split(labels, hashes, seed=1)


def test_the_split_does_not_depend_on_the_order_of_rows():
    labels, hashes = pictures(50, 30)
    by_hash = dict(zip(hashes, split(labels, hashes), strict=True))
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = split([labels[row] for row in order], [hashes[row] for row in order])
    assert shuffled == [by_hash[hashes[row]] for row in order]


def test_a_picture_added_moves_few_others():
    labels, hashes = pictures(100, 100)
    before = split(labels, hashes)
    for added in range(20):
        new = hashlib.sha256(f"new {added}".encode()).hexdigest()
        after = split([1, *labels], [new, *hashes])[1:]
        assert sum(a != b for a, b in zip(after, before, strict=True)) <= 3


def test_pictures_are_not_split_in_the_order_they_come():
    labels, hashes = pictures(100)
    names = split(labels, hashes)
    assert 0 < names[:50].count("test") < 25


@pytest.mark.parametrize(
    ("count", "wanted"),
    [
        (1, {"train": 1}),
        (3, {"train": 1, "valid": 1, "test": 1}),
        (4, {"train": 2, "valid": 1, "test": 1}),
        (5, {"train": 3, "valid": 1, "test": 1}),
    ],
)
def test_a_tiny_class_has_one_picture_in_each_split_where_it_can(count, wanted):
    labels, hashes = pictures(count)
    assert Counter(split(labels, hashes)) == wanted


@pytest.mark.parametrize("fractions", [FRACTIONS, {"test": 0.5, "valid": 0.4}, {"valid": 0.89}])
def test_training_always_keeps_a_picture_of_each_class(fractions):
    for count in range(1, 12):
        labels, hashes = pictures(count, 30)
        names = split(labels, hashes, fractions)
        assert {label for label, name in zip(labels, names, strict=True) if name == "train"} == {0, 1}


def test_a_large_share_leaves_a_picture_for_a_small_one_after_it():
    labels, hashes = pictures(7)
    assert set(split(labels, hashes, {"test": 0.8, "valid": 0.01})) == {"train", "valid", "test"}


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_picture_are_in_one_split(seed):
    labels, hashes = pictures(60, 30)
    names = split(labels * 2, hashes * 2, seed=seed)
    assert names[:90] == names[90:]
    assert set(names) == {"train", "valid", "test"}


def test_a_split_of_no_share_stays_empty():
    labels, hashes = pictures(3, 30)
    assert "test" not in split(labels, hashes, {"test": 0.0, "valid": 0.15})
    assert set(split(labels, hashes, {})) == {"train"}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_smaller_fraction_lies_within_a_larger_one(seed):
    labels, hashes = pictures(60, 25)
    kept = [set(stratified_fraction(labels, hashes, share, seed)) for share in (0.01, 0.1, 0.33, 0.5, 0.9, 1.0)]
    assert all(small < large for small, large in pairwise(kept))
    assert kept[-1] == set(range(85))


def test_a_fraction_is_taken_of_every_class_and_rounded_up():
    labels, hashes = pictures(100, 11, 1)
    kept = stratified_fraction(labels, hashes, 0.1, 0)
    assert Counter(labels[row] for row in kept) == {0: 10, 1: 2, 2: 1}


def test_a_fraction_of_a_hundred_is_exact():
    labels, hashes = pictures(100)
    counts = [len(stratified_fraction(labels, hashes, hundredths / 100, 0)) for hundredths in range(1, 101)]
    assert counts == list(range(1, 101))


def test_a_fraction_is_in_ascending_order_and_depends_on_the_seed():
    labels, hashes = pictures(100)
    kept = stratified_fraction(labels, hashes, 0.3, 0)
    assert kept.dtype == np.int64
    assert (np.diff(kept) > 0).all()
    assert set(kept) != set(stratified_fraction(labels, hashes, 0.3, 1))


def test_a_fraction_does_not_depend_on_the_order_of_rows():
    labels, hashes = pictures(50, 30)
    kept = {hashes[row] for row in stratified_fraction(labels, hashes, 0.2, 0)}
    assert {hashes[::-1][row] for row in stratified_fraction(labels[::-1], hashes[::-1], 0.2, 0)} == kept


def grouped(sizes, classes=1, seed=0, fractions=FRACTIONS):
    """(labels, groups, splits) of groups of these sizes, their pictures going through the classes."""
    groups = [f"group {number}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = [row % classes for row in range(len(groups))]
    return labels, groups, grouped_split(labels, groups, fractions, "train", seed)


@pytest.mark.parametrize("seed", range(3))
def test_no_group_falls_into_two_splits_and_each_class_is_split_by_about_the_fractions(seed):
    sizes = np.random.default_rng(seed).integers(1, 20, 120).tolist()
    labels, groups, names = grouped(sizes, 3, seed)
    assert len(set(zip(groups, names, strict=True))) == len(sizes)
    counts, totals = Counter(zip(labels, names, strict=True)), Counter(labels)
    for label in range(3):
        for name, share in (FRACTIONS | {"train": 0.6}).items():
            assert abs(counts[label, name] / totals[label] - share) < 0.03


def test_groups_of_one_are_split_as_pictures_are():
    _, _, names = grouped([1] * 200)
    assert Counter(names) == {"train": 120, "test": 50, "valid": 30}


def test_a_large_group_goes_where_it_fits():
    _, _, names = grouped([60] + [1] * 40)
    assert set(names[:60]) == {"train"}
    assert Counter(names[60:]) == {"test": 25, "valid": 15}


@pytest.mark.parametrize("sizes", [[10, 10, 10], [30, 2, 1], [5, 5, 5, 5]])
def test_a_few_groups_reach_all_splits(sizes):
    assert set(grouped(sizes)[2]) == {"train", "valid", "test"}


def test_the_split_of_groups_depends_on_the_seed_and_not_on_the_order_of_rows():
    labels, groups, names = grouped([3] * 40, 2)
    by_group = dict(zip(groups, names, strict=True))
    order = np.random.default_rng(0).permutation(len(groups))
    again = grouped_split([labels[row] for row in order], [groups[row] for row in order], FRACTIONS, "train", 0)
    assert again == [by_group[groups[row]] for row in order]
    assert grouped([3] * 40, 2, seed=1)[2] != names


def picture_table(count=20, **columns):
    """A table of `count` pictures of two classes, no two alike, with these columns put over it."""
    table = pd.DataFrame(
        {
            "path": [f"{row:02d}.png" for row in range(count)],
            "label": ["cat" if row % 2 else "dog" for row in range(count)],
            "hash": [f"{row:064d}" for row in range(count)],
            "split": "",
            "group": "",
        }
    )
    return table.assign(**columns)


def assign(table, valid=0.2, test=0.2, seed=0):
    return assign_splits(table, valid, test, seed)


def test_pictures_without_a_split_are_split_by_the_fractions():
    splits, moved = assign(picture_table())
    assert Counter(splits) == {"train": 12, "valid": 4, "test": 4}
    assert moved.empty


def test_given_splits_are_kept_and_get_no_more_pictures():
    given = ["test"] * 5 + [""] * 15
    splits, moved = assign(picture_table(split=given))
    assert splits[:5] == ["test"] * 5
    assert Counter(splits[5:]) == {"train": 12, "valid": 3}
    assert moved.empty


def test_pictures_given_to_train_alone_are_split_into_train_and_valid_and_not_test():
    assert Counter(assign(picture_table(split="train"))[0]) == {"train": 16, "valid": 4}


@pytest.mark.parametrize("given", ["", "train"])
def test_every_group_is_in_one_split(given):
    groups = [f"patient {row // 2}" for row in range(40)]
    splits, moved = assign(picture_table(40, group=groups, split=given))
    assert len(set(zip(groups, splits, strict=True))) == 20
    assert {"train", "valid"} <= set(splits)
    assert moved.empty


def test_a_group_goes_where_one_of_it_is_given():
    groups = ["a"] * 4 + [f"{row}" for row in range(16)]
    splits, _ = assign(picture_table(group=groups, split=["", "test", "", ""] + [""] * 16))
    assert splits[:4] == ["test"] * 4
    assert "test" not in splits[4:]


def test_a_picture_without_a_group_is_a_group_of_its_own():
    splits, _ = assign(picture_table(group=["a", "a"] + [""] * 18))
    assert splits[0] == splits[1]
    assert Counter(splits) == {"train": 12, "valid": 4, "test": 4}


def test_a_group_that_is_given_to_two_splits_is_named():
    table = picture_table(group=["a"] * 4 + [""] * 16, split=["train", "train", "test", ""] + ["train"] * 16)
    with pytest.raises(UserError, match=r"The group a is given to two splits: 00\.png to train and 02\.png to test"):
        assign(table)


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "valid"), ("valid", "test")])
def test_copies_in_two_splits_go_to_the_earlier_and_are_named(one, other):
    table = picture_table(split=["train"] * 12 + ["valid"] * 4 + ["test"] * 4)
    first, second = (table.index[table["split"] == name][0] for name in (one, other))
    table.loc[second, "hash"] = table.loc[first, "hash"]
    splits, moved = assign(table)
    assert splits[first] == splits[second] == one
    assert [name for row, name in enumerate(splits) if row != second] == table["split"].drop(second).tolist()
    paths = table["path"]
    assert moved.to_numpy().tolist() == [[paths[second], other, one, paths[first]]]


def test_a_copy_without_a_split_goes_to_that_of_the_other_and_is_not_moved():
    table = picture_table(split=["test", ""] + ["train"] * 18)
    table.loc[1, "hash"] = table.loc[0, "hash"]
    splits, moved = assign(table)
    assert splits[:2] == ["test", "test"]
    assert moved.empty


def test_a_copy_that_moves_takes_its_group_along():
    table = picture_table(split=["train"] * 16 + ["test"] * 4, group=[""] * 18 + ["a", "a"])
    table.loc[18, "hash"] = table.loc[0, "hash"]
    splits, moved = assign(table, valid=0.1)
    assert splits[18] == splits[19] == splits[0]
    assert moved[["path", "moved_from", "moved_to"]].to_numpy().tolist() == [
        ["18.png", "test", "train"],
        ["19.png", "test", "train"],
    ]
    assert set(moved["same_as"]) == {"00.png"}


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_share_a_picture_stay_together(seed):
    table = picture_table(40, group=[f"{row // 4}" for row in range(40)])
    table.loc[4, "hash"] = table.loc[0, "hash"]
    splits, _ = assign(table, seed=seed)
    assert len(set(splits[:8])) == 1


def test_a_split_of_copies_alone_is_an_error():
    table = picture_table(split=["train"] * 18 + ["test"] * 2)
    table.loc[[18, 19], "hash"] = table.loc[[0, 1], "hash"].to_numpy()
    with pytest.raises(UserError, match=r"Every picture that is given to test has a copy .* 18\.png and 00\.png"):
        assign(table)


def test_content_in_two_classes_is_found_with_all_its_copies():
    table = picture_table(6)
    table.loc[[1, 2, 4], "hash"] = table.loc[0, "hash"]
    assert contradictions(table) == {
        0: "has the same content as 01.png, of the class cat",
        1: "has the same content as 00.png, of the class dog",
        2: "has the same content as 01.png, of the class cat",
        4: "has the same content as 01.png, of the class cat",
    }


def test_copies_within_a_class_contradict_nothing():
    table = picture_table(6)
    table.loc[2, "hash"] = table.loc[0, "hash"]
    assert contradictions(table) == {}


@pytest.mark.parametrize("counts", [(200, 40), (7,) * 30, (3, 50, 1)])
def test_each_class_is_spread_over_all_folds_which_are_alike_in_size(counts):
    labels, hashes = pictures(*counts)
    of_fold = Counter(assign_folds(labels, hashes, 5, seed=0).tolist())
    assert max(of_fold.values()) - min(of_fold.values()) <= 2
    by_class = Counter(zip(labels, assign_folds(labels, hashes, 5, seed=0).tolist(), strict=True))
    for label in range(len(counts)):
        of_class = [by_class[label, fold] for fold in range(5)]
        assert max(of_class) - min(of_class) <= 1


def test_copies_and_groups_are_never_divided_by_folds():
    labels, hashes = pictures(60, 30)
    groups = [f"herd {row // 7}" if row % 3 else "" for row in range(90)]
    hashes[11] = hashes[80]
    units = units_of(hashes, groups)
    folds = assign_folds(labels, units, 4, seed=0).tolist()
    assert len(set(zip(units, folds, strict=True))) == len(set(units)) < 60
    assert folds[11] == folds[80]
    assert set(folds) == {0, 1, 2, 3}


def test_folds_follow_from_the_seed_and_not_from_the_order_of_pictures():
    labels, hashes = pictures(40, 20)
    folds = assign_folds(labels, hashes, 5, seed=0).tolist()
    backwards = assign_folds(labels[::-1], hashes[::-1], 5, seed=0).tolist()
    assert backwards[::-1] == folds
    assert assign_folds(labels, hashes, 5, seed=1).tolist() != folds
