import pytest
from mlflow.utils.validation import _validate_metric
from odd_text import NOT_UNICODE, ODD

from pipeline.system.metric_names import metric_names

LABELS = [
    *ODD, NOT_UNICODE, "🐶", "C++", "C#", "C", "a/b", "a//b", "/a", "a/", "a/../b", "..", ".", "Cat", "cat", "CAT", "é",
    "e", "x" * 300, "x" * 301, "pictures/cat", "../../a", "label-0a1b2c3d", "50% dog",
]  # fmt: skip


def test_names_are_valid_and_distinct_for_every_label():
    names = metric_names("pictures", LABELS)
    for name in names:
        _validate_metric(name, 1.0, 0, 0)
        assert name.count("/") == 1
    assert len({name.casefold() for name in names}) == len(LABELS)


@pytest.mark.parametrize(
    "label", ["cat", "Cat", "defective", "a b", "2024", "v1.2", "chat_noir", "日本", "é", "x" * 100]
)
def test_a_plain_label_is_its_own_name(label):
    assert metric_names("pictures", [label, "other"])[0] == f"pictures/{label}"


def test_a_label_has_the_same_name_beside_any_others():
    alone = [metric_names("pictures", [label])[0] for label in ("🐱", "a/b", "C++")]
    assert metric_names("pictures", ["🐱", "a/b", "C++", "dog"])[:3] == alone


@pytest.mark.parametrize("label", ["🐱", "a//b", "x" * 300, "label-0a1b2c3d", "cat-0a1b2c3d"])
def test_no_label_can_take_the_name_of_another(label):
    (name,) = metric_names("pictures", [label])
    assert metric_names("pictures", [name.removeprefix("pictures/")]) != [name]


def test_what_is_taken_is_no_labels_name():
    (name,) = metric_names("pictures", ["cannot be opened"], ["cannot be opened"])
    assert name.startswith("pictures/cannot_be_opened-")
