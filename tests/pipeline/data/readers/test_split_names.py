import pytest

from pipeline.data.readers.split_names import is_neutral, is_of_no_class, parse_split_name, split_of


@pytest.mark.parametrize(
    ("name", "split", "others"),
    [
        ("train", "train", ()), ("Training", "train", ()), ("TRAIN", "train", ()), ("trainset", "train", ()),
        ("train_images", "train", ()), ("TrainImages", "train", ()), ("train2017", "train", ()),
        ("01-train", "train", ()),
        ("dataset_train", "train", ()), ("training_set", "train", ()), ("seg_train", "train", ("seg",)),
        ("imgs.train", "train", ()), ("train 224px", "train", ("px",)), ("val", "valid", ()), ("Valid", "valid", ()),
        ("validation_data", "valid", ()), ("dev", "valid", ()), ("devset", "valid", ()), ("valset", "valid", ()),
        ("Testing", "test", ()), ("test1", "test", ()), ("testset", "test", ()),
        ("chest_xray_test", "test", ("chest", "xray")),
    ],
)  # fmt: skip
def test_splits_go_by_many_names(name, split, others):
    assert parse_split_name(name) == (split, others)


@pytest.mark.parametrize(
    "name", ["", "cat", "trains", "trainer", "devil", "valley", "tests of time", "train_test", "訓練", "2024"]
)
def test_other_names_are_no_splits(name):
    assert parse_split_name(name) is None


def test_a_cell_is_a_split_or_empty_or_neither():
    assert [split_of(text) for text in ("Train", " ", "test set", "bullet train", "0")] == [
        "train",
        "",
        "test",
        None,
        None,
    ]


def test_names_that_say_nothing():
    assert is_neutral("images")
    assert not is_neutral("2024")
    assert not is_neutral("--")
    assert [name for name in ("unknown", "test", "images", "bird", "seg_test") if is_of_no_class(name)] == [
        "unknown", "test", "images",
    ]  # fmt: skip
