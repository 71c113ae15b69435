import os
import unicodedata

import pytest

from pipeline.data.readers.sources import list_source
from pipeline.system.errors import UserError

ENDINGS = [".jpg", ".png"]


def listing(root, *files):
    """What is listed of a folder with these empty files; "{cat}" in one stands for the classes cat and dog."""
    for file in files:
        for label in ("cat", "dog") if "{cat}" in file else ("",):
            path = root / file.replace("{cat}", label)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return list_source(str(root), ENDINGS)


def splits_of(found):
    """The labels of each split."""
    pairs = set(zip(found.splits or [], found.labels, strict=True)) if found.splits else set()
    return {split: sorted(label for one, label in pairs if one == split) for split, _ in sorted(pairs)}


BOTH = {"train": ["cat", "dog"], "test": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"), ("TRAIN", "TEST"), ("trainset", "testset"), ("train_images", "test_images"),
        ("dataset_train", "dataset_test"), ("seg_train/seg_train", "seg_test/seg_test"),
        ("images/train", "images/test"),
        ("train/images", "test/images"), ("train2017", "test2017"), ("data/raw/train", "data/raw/test"),
        ("chest_xray/train", "chest_xray/test"), ("training_set/training_set", "test_set/test_set"),
    ],
)  # fmt: skip
def test_splits_are_known_by_their_common_names(tmp_path, train, test):
    found = listing(tmp_path, f"{train}/{{cat}}/1.jpg", f"{test}/{{cat}}/2.jpg", "README.txt", "labels/train/1.txt")
    assert splits_of(found) == BOTH
    assert found.notes == []
    assert all((tmp_path / path).is_file() for path in found.paths)


@pytest.mark.parametrize("valid", ["valid", "Validation", "val_images", "dev"])
def test_validation_is_known_by_its_common_names(tmp_path, valid):
    found = listing(tmp_path, "Train/{cat}/1.jpg", f"{valid}/{{cat}}/1.jpg")
    assert splits_of(found) == {"train": ["cat", "dog"], "valid": ["cat", "dog"]}


@pytest.mark.parametrize("inner", ["", "2024/", "more/"])
@pytest.mark.parametrize("name", ["train", "test", "Training", "bullet_train", "dev"])
def test_a_class_may_be_called_like_a_split(tmp_path, name, inner):
    found = listing(tmp_path, *(f"{label}/{inner}1.jpg" for label in (name, "bus", "car")))
    assert sorted(found.labels) == sorted([name, "bus", "car"])
    assert found.splits is None
    assert found.notes == []


def test_splits_may_lie_within_the_classes(tmp_path):
    found = listing(tmp_path, "{cat}/train/1.jpg", "{cat}/test/1.jpg")
    assert splits_of(found) == BOTH


@pytest.mark.parametrize("files", [["train/1.jpg", "test/1.jpg"], ["Train/1.jpg", "val/1.jpg", "masks/1.jpg"]])
def test_split_folders_without_class_folders_are_no_classes(tmp_path, files):
    with pytest.raises(UserError, match="there is no class folder with pictures"):
        listing(tmp_path, *files)


@pytest.mark.parametrize("folders", [("set1", "set2"), ("fold a", "fold b", "fold c"), ("2750",), ("archived stuff",)])
def test_folders_a_level_too_high_are_refused_with_what_to_name(tmp_path, folders):
    with pytest.raises(UserError) as caught:
        listing(tmp_path, *(f"{folder}/{{cat}}/1.jpg" for folder in folders))
    assert "holds nothing but folders (cat, dog in" in str(caught.value)
    assert f"such as {tmp_path / folders[0]}, name split folders" in str(caught.value)


def test_classes_of_nothing_but_numbered_folders_are_kept_with_a_note(tmp_path):
    found = listing(tmp_path, "{cat}/day1/1.jpg", "{cat}/day2/1.jpg")
    assert sorted(set(found.labels)) == ["cat", "dog"]
    assert len(found.notes) == 1
    assert "every class folder (cat, dog) holds nothing but folders (day1, day2 in cat)" in found.notes[0]


@pytest.mark.parametrize("test", ["test/", "test/test/", "Testing/unknown/", "test1/images/"])
def test_a_test_folder_without_labels_is_left_out_and_said(tmp_path, test):
    found = listing(tmp_path, "train/{cat}/1.jpg", f"{test}1.jpg", f"{test}2.jpg")
    assert splits_of(found) == {"train": ["cat", "dog"]}
    assert (test.split("/")[0], "holds 2 pictures in no folder of a class") in found.set_aside
    assert len(found.notes) == 1
    assert "so that they are not used" in found.notes[0]


def test_what_systems_leave_behind_is_no_class(tmp_path):
    left = ("__MACOSX/cat/._1.jpg", "Thumbs.db", "cat/desktop.ini", ".ipynb_checkpoints/1.jpg", "cat/@eaDir/1.jpg")
    found = listing(tmp_path, "{cat}/1.jpg", *left, "cat/.ipynb_checkpoints/1-checkpoint.jpg", "cat/__MACOSX/1.jpg")
    assert found.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert found.set_aside == []


def test_class_folders_equal_to_the_eye_are_one_class(tmp_path):
    forms = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    found = listing(tmp_path, *(f"{form}/{number}.jpg" for number, form in enumerate(forms)), " bar/1.jpg", "bar/2.jpg")
    assert sorted(found.labels) == ["bar", "bar", forms[0], forms[0]]
    assert all((tmp_path / path).is_file() for path in found.paths)


@pytest.mark.parametrize("locked", ["dog", "train/dog", "test", ""])
def test_a_folder_that_may_not_be_read_is_told_so(tmp_path, monkeypatch, locked):
    top = locked.partition("/")[0] if "/" in locked or locked == "test" else ""
    prefix = "train/" if top else ""
    scan = os.scandir

    def refuse(path):
        if os.fspath(path).rstrip("/") == str(tmp_path / locked):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read .*Permission denied") as caught:
        listing(tmp_path, f"{prefix}{{cat}}/1.jpg", "test/{cat}/1.jpg" if top else "bird/1.jpg")
    assert str(tmp_path / locked) in str(caught.value)
