from pathlib import Path

import pytest

from pipeline.data.readers.soft_labels import SoftLabels, check_likeliest, class_columns, note_ties, read_shares
from pipeline.system.errors import UserError

OTHERS = ("path", "label", "split", "group", "weight")
SOFT = SoftLabels(["cat", "dog"], [(1.0, 0.0), (0.25, 0.75), (0.5, 0.5)])


def columns(*header):
    return class_columns(header, OTHERS, Path("pets.csv"))


def test_the_label_is_the_likeliest_class_and_of_several_the_first_by_name():
    assert SOFT.labels() == ["cat", "dog", "cat"]
    assert SoftLabels(["dog", "cat"], [(0.5, 0.5)]).labels() == ["cat"]
    (note,) = note_ties(SOFT)
    assert note.startswith("1 of 3 pictures have several likeliest classes")
    assert note_ties(SoftLabels(["cat", "dog"], [(0.6, 0.4)])) == []


def test_pictures_without_a_class_of_nine_tenths_weigh_what_is_asked_for():
    soft = SoftLabels(["cat", "dog"], [(0.9, 0.1), (0.89, 0.11), (0.0, 1.0)])
    assert soft.weights(0.5) == [1.0, 0.5, 1.0]


def test_columns_that_are_named_as_probabilities_are_classes_and_others_are_not():
    assert columns("path", "probability/Cat", "Probability/ C++", "notes") == {"Cat": 1, "C++": 2}


def test_without_such_names_all_further_columns_are_classes_if_they_are_several():
    assert columns("", "path", "Cat", "dog", "Split") == {"Cat": 2, "dog": 3}
    assert columns("path", "kind") == {}


def test_a_table_with_labels_has_no_soft_ones():
    assert columns("path", " Label ", "probability/cat", "probability/dog") == {}


def test_two_columns_of_a_class_are_refused():
    with pytest.raises(UserError, match=r"pets\.csv has two columns for the class caf\u00e9"):
        columns("path", "probability/café", "probability/café", "probability/tea")


def test_shares_add_up_to_one_and_an_empty_cell_is_zero():
    assert read_shares({"cat": "0.333", "dog": "0.666", "cow": ""}, "row 1") == (0.333333, 0.666667, 0.0)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"cat": "0.5", "dog": "0.3"}, r"pets, row 1 has probabilities of cat, dog that add up to 0\.8"),
        ({"cat": "", "dog": ""}, "add up to 0;"),
        ({"cat": "80", "dog": "20"}, "has '80' in the column cat, which is no probability"),
        ({"cat": "-0.5", "dog": "1.5"}, "has '-0.5'"),
        ({"cat": "nan", "dog": "1"}, "has 'nan'"),
        ({"id": "a7", "dog": "1"}, "has 'a7' in the column id.*columns named probability/CLASS"),
    ],
)
def test_what_is_no_probability_is_named(cells, message):
    with pytest.raises(UserError, match=message):
        read_shares(cells, "pets, row 1")


def test_a_class_that_is_the_likeliest_nowhere_is_refused():
    check_likeliest(SOFT, "pets.csv")
    with pytest.raises(UserError, match=r"pets\.csv has the class cow, which is the likeliest of no picture"):
        check_likeliest(SoftLabels(["cat", "cow"], [(0.6, 0.4)]), "pets.csv")
