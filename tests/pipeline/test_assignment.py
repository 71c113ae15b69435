from collections import Counter

import pandas as pd
import pytest

from pipeline.assignment import assign_splits, contradictions
from pipeline.errors import UserError


def pictures(count=20, **columns):
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


def test_what_is_not_given_is_split_by_the_fractions():
    splits, moved = assign(pictures())
    assert Counter(splits) == {"train": 12, "valid": 4, "test": 4}
    assert moved.empty


def test_what_is_given_is_kept_and_a_split_that_is_named_gets_no_more():
    given = ["test"] * 5 + [""] * 15
    splits, moved = assign(pictures(split=given))
    assert splits[:5] == ["test"] * 5
    assert Counter(splits[5:]) == {"train": 12, "valid": 3}
    assert moved.empty


def test_what_is_given_to_train_alone_gives_to_validation_and_not_to_the_test():
    assert Counter(assign(pictures(split="train"))[0]) == {"train": 16, "valid": 4}


@pytest.mark.parametrize("given", ["", "train"])
def test_no_group_is_parted(given):
    groups = [f"patient {row // 2}" for row in range(40)]
    splits, moved = assign(pictures(40, group=groups, split=given))
    assert len(set(zip(groups, splits, strict=True))) == 20
    assert {"train", "valid"} <= set(splits)
    assert moved.empty


def test_a_group_goes_where_one_of_it_is_given():
    groups = ["a"] * 4 + [f"{row}" for row in range(16)]
    splits, _ = assign(pictures(group=groups, split=["", "test", "", ""] + [""] * 16))
    assert splits[:4] == ["test"] * 4
    assert "test" not in splits[4:]


def test_a_picture_without_a_group_is_a_group_of_its_own():
    splits, _ = assign(pictures(group=["a", "a"] + [""] * 18))
    assert splits[0] == splits[1]
    assert Counter(splits) == {"train": 12, "valid": 4, "test": 4}


def test_a_group_that_is_given_to_two_splits_is_named():
    table = pictures(group=["a"] * 4 + [""] * 16, split=["train", "train", "test", ""] + ["train"] * 16)
    with pytest.raises(UserError, match=r"The group a is given to two splits: 00\.png to train and 02\.png to test"):
        assign(table)


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("train", "valid"), ("valid", "test")])
def test_copies_in_two_splits_go_to_the_earlier_and_are_named(one, other):
    table = pictures(split=["train"] * 12 + ["valid"] * 4 + ["test"] * 4)
    first, second = (table.index[table["split"] == name][0] for name in (one, other))
    table.loc[second, "hash"] = table.loc[first, "hash"]
    splits, moved = assign(table)
    assert splits[first] == splits[second] == one
    assert [name for row, name in enumerate(splits) if row != second] == table["split"].drop(second).tolist()
    paths = table["path"]
    assert moved.to_numpy().tolist() == [[paths[second], other, one, paths[first]]]


def test_a_copy_without_a_split_goes_to_that_of_the_other_and_is_not_moved():
    table = pictures(split=["test", ""] + ["train"] * 18)
    table.loc[1, "hash"] = table.loc[0, "hash"]
    splits, moved = assign(table)
    assert splits[:2] == ["test", "test"]
    assert moved.empty


def test_a_copy_that_moves_takes_its_group_along():
    table = pictures(split=["train"] * 16 + ["test"] * 4, group=[""] * 18 + ["a", "a"])
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
    table = pictures(40, group=[f"{row // 4}" for row in range(40)])
    table.loc[4, "hash"] = table.loc[0, "hash"]
    splits, _ = assign(table, seed=seed)
    assert len(set(splits[:8])) == 1


def test_a_split_of_copies_alone_is_told():
    table = pictures(split=["train"] * 18 + ["test"] * 2)
    table.loc[[18, 19], "hash"] = table.loc[[0, 1], "hash"].to_numpy()
    with pytest.raises(UserError, match=r"Every picture that is given to test has a copy .* 18\.png and 00\.png"):
        assign(table)


def test_content_that_lies_in_two_classes_is_found_with_all_its_copies():
    table = pictures(6)
    table.loc[[1, 2, 4], "hash"] = table.loc[0, "hash"]
    assert contradictions(table) == {
        0: "has the same content as 01.png, of the class cat",
        1: "has the same content as 00.png, of the class dog",
        2: "has the same content as 01.png, of the class cat",
        4: "has the same content as 01.png, of the class cat",
    }


def test_copies_within_a_class_contradict_nothing():
    table = pictures(6)
    table.loc[2, "hash"] = table.loc[0, "hash"]
    assert contradictions(table) == {}
