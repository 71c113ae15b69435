from pathlib import Path

import pytest

from pipeline.data.readers.listing import Listing, check_listing, note_look_alikes
from pipeline.system.errors import UserError


def check(labels, splits=None):
    paths = [str(number) for number in range(len(labels))]
    check_listing(Listing("pets", Path("pets"), paths, labels, splits), "pets/", "class folder")


def test_two_classes_will_do():
    check(["cat", "dog"])
    check(["cat", "dog"] * 2, ["train", "train", "valid", "valid"])


@pytest.mark.parametrize(
    ("labels", "splits", "words"),
    [
        ([], None, "data.source is pets/, where there is no class folder."),
        (["cat", "cat"], None, "data.source is pets/, which has one class alone, cat; a classifier needs two or more."),
        (["cat", "dog"], ["valid", "test"], "which gives pictures to test and none to train; add some."),
        (["cat", "dog", "cat"], ["train", "valid", "valid"], "The class dog has no picture in train/"),
        (["cat", "dog", "cat"], ["train", "train", "valid"], "The class dog has no picture in the validation folder"),
    ],
)
def test_pictures_that_cannot_be_trained_on_are_an_error_of_one_sentence(labels, splits, words):
    with pytest.raises(UserError) as caught:
        check(labels, splits)
    assert words in str(caught.value)


def test_splits_that_are_given_in_part_are_not_checked_yet():
    check(["cat", "dog"], ["test", ""])


def test_a_class_may_be_missing_from_the_test_split():
    check(["cat", "dog", "cat"], ["train", "train", "test"])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["cat", "Cat", "dog"], "The classes Cat, cat differ in case alone"),
        (["Stra\u00dfe", "STRASSE"], "differ in case alone"),
        (["black cat", "black  cat"], "differ in nothing that is easily seen"),
        (["cat", "c\u200bat"], "differ in nothing that is easily seen"),
    ],
)
def test_classes_that_look_alike_are_reported(labels, words):
    assert [words in note for note in note_look_alikes(labels)] == [True]


def test_other_classes_are_not():
    assert note_look_alikes(["C#", "C++", "cat", "cats", "\U0001f431", "\U0001f436"]) == []
