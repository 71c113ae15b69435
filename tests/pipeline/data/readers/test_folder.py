import os
from collections import Counter

import pytest

from pipeline.data.readers.folder import list_pictures
from pipeline.data.readers.sources import list_source
from pipeline.system.errors import UserError

ENDINGS = [".jpg", ".png"]


def tree(root, *paths):
    """A folder with these files, none of which is opened when listing."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return str(root)


def test_class_folders_name_the_classes(tmp_path):
    listing = list_source(tree(tmp_path, "cat/2.jpg", "cat/1.png", "dog/1.jpg"), ENDINGS)
    assert listing.paths == ["cat/1.png", "cat/2.jpg", "dog/1.jpg"]
    assert listing.labels == ["cat", "cat", "dog"]
    assert listing.splits is None
    assert listing.set_aside == []
    assert (listing.name, listing.root) == (tmp_path.name, tmp_path.resolve())


def test_a_folder_may_be_relative_to_the_working_folder(tmp_path, monkeypatch):
    tree(tmp_path / "photos", "cat/1.jpg", "dog/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert list_source("photos/", ENDINGS) == list_source(str(tmp_path / "photos"), ENDINGS)


def test_pictures_at_any_depth_belong_to_the_class_at_the_top(tmp_path):
    listing = list_source(tree(tmp_path, "cat/2024/may/1.jpg", "cat/0.jpg", "dog/a/b/c/d/1.jpg"), ENDINGS)
    assert dict(zip(listing.paths, listing.labels, strict=True)) == {
        "cat/0.jpg": "cat",
        "cat/2024/may/1.jpg": "cat",
        "dog/a/b/c/d/1.jpg": "dog",
    }


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val"])
def test_folders_of_splits_are_kept_whatever_validation_is_called(tmp_path, valid):
    names = [f"{split}/{label}/1.jpg" for split in ("train", valid, "test") for label in ("cat", "dog")]
    listing = list_source(tree(tmp_path, *names), ENDINGS)
    found = dict(zip(listing.paths, zip(listing.labels, listing.splits, strict=True), strict=True))
    assert found == {
        "train/cat/1.jpg": ("cat", "train"),
        "train/dog/1.jpg": ("dog", "train"),
        f"{valid}/cat/1.jpg": ("cat", "valid"),
        f"{valid}/dog/1.jpg": ("dog", "valid"),
        "test/cat/1.jpg": ("cat", "test"),
        "test/dog/1.jpg": ("dog", "test"),
    }


def test_two_folders_for_the_same_split_are_an_error(tmp_path):
    names = [f"{split}/{label}/1.jpg" for split in ("train", "val", "valid") for label in ("cat", "dog")]
    with pytest.raises(UserError, match="two folders for the same split"):
        list_source(tree(tmp_path, *names), ENDINGS)


@pytest.mark.parametrize("splits", [("valid", "test"), ("Val",), ("test",)])
def test_folders_of_splits_with_none_for_training_are_no_classes(tmp_path, splits):
    names = [f"{split}/{label}/1.jpg" for split in splits for label in ("cat", "dog")]
    with pytest.raises(UserError, match=f"has a folder {min(splits)}/ but none called train/; add one"):
        list_source(tree(tmp_path, *names), ENDINGS)


def test_a_class_may_be_called_like_a_split_where_there_is_no_train(tmp_path):
    listing = list_source(tree(tmp_path, "test/1.jpg", "other/1.jpg"), ENDINGS)
    assert listing.labels == ["other", "test"]
    assert listing.splits is None


def test_hidden_files_and_folders_are_left_out(tmp_path):
    names = ["cat/1.jpg", "cat/.2.jpg", "cat/.trash/3.jpg", ".git/4.jpg", "dog/1.jpg", "dog/.DS_Store"]
    listing = list_source(tree(tmp_path, *names), ENDINGS)
    assert listing.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == []


def test_other_files_are_set_aside_by_name_with_the_reason(tmp_path):
    names = ["cat/1.jpg", "cat/deep/notes.txt", "dog/1.jpg", "dog/README"]
    listing = list_source(tree(tmp_path, *names), ENDINGS)
    assert listing.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == [
        ("cat/deep/notes.txt", ".txt is not in data.extensions"),
        ("dog/README", "no ending is not in data.extensions"),
    ]


def test_a_file_whose_name_is_no_text_is_set_aside(tmp_path):
    source = tree(tmp_path, "cat/0.jpg", "cat/1.jpg", "dog/1.jpg")
    os.rename(tmp_path / "cat" / "0.jpg", os.fsencode(tmp_path) + b"/cat/\xff.jpg")
    listing = list_source(source, ENDINGS)
    assert listing.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == [("cat/\N{REPLACEMENT CHARACTER}.jpg", "its name is not UTF-8")]


def test_files_outside_the_class_folders_are_set_aside(tmp_path):
    listing = list_source(tree(tmp_path, "cat/1.jpg", "dog/1.jpg", "stray.jpg", "README", ".hidden.jpg"), ENDINGS)
    assert listing.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == [(name, "lies outside the class folders") for name in ("README", "stray.jpg")]


def test_folders_beside_those_of_the_splits_are_set_aside(tmp_path):
    names = ["train/cat/1.jpg", "train/dog/1.jpg", "bus/1.jpg", ".git/1.jpg"]
    listing = list_source(tree(tmp_path, *names), ENDINGS)
    assert listing.labels == ["cat", "dog"]
    assert listing.set_aside == [("bus", "lies beside the split folders")]


def test_endings_may_be_in_capitals(tmp_path):
    source = tree(tmp_path, "cat/1.JPG", "dog/1.jpg")
    assert list_source(source, [".jpg"]).paths == list_source(source, [".JPG"]).paths == ["cat/1.JPG", "dog/1.jpg"]


def test_names_outside_ascii_are_kept(tmp_path):
    listing = list_source(tree(tmp_path, "кошка/ü 1.jpg", "犬/名.png"), ENDINGS)
    assert listing.labels == ["кошка", "犬"]
    assert listing.paths == ["кошка/ü 1.jpg", "犬/名.png"]


def test_a_class_with_no_picture_is_named_with_its_folder_and_the_endings(tmp_path):
    with pytest.raises(UserError, match=r"The class dog has no picture: .*dog holds none that ends in \.jpg, \.png"):
        list_source(tree(tmp_path, "cat/1.jpg", "dog/notes.txt"), ENDINGS)


@pytest.mark.parametrize(("short", "folder"), [("train", "train/"), ("valid", "the validation folder")])
def test_a_class_missing_from_a_given_split_is_named(tmp_path, short, folder):
    names = [f"{split}/{label}/1.jpg" for split in ("train", "valid", "test") for label in ("cat", "dog")]
    names.remove(f"{short}/dog/1.jpg")
    with pytest.raises(UserError, match=f"The class dog has no picture in {folder}"):
        list_source(tree(tmp_path, *names), ENDINGS)


def test_a_class_may_be_missing_from_the_test_split(tmp_path):
    names = [f"{split}/{label}/1.jpg" for split in ("train", "valid") for label in ("cat", "dog")]
    listing = list_source(tree(tmp_path, *names, "test/cat/1.jpg"), ENDINGS)
    assert Counter(listing.splits) == {"train": 2, "valid": 2, "test": 1}


def test_a_class_in_the_test_split_alone_is_named(tmp_path):
    names = ["train/cat/1.jpg", "train/dog/1.jpg", "test/bird/1.jpg"]
    with pytest.raises(UserError, match="The class bird has no picture in train/"):
        list_source(tree(tmp_path, *names), ENDINGS)


def test_one_class_alone_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has one class alone, cat"):
        list_source(tree(tmp_path, "cat/1.jpg"), ENDINGS)


@pytest.mark.parametrize("names", [[], ["1.jpg", "2.jpg"], ["train/1.jpg"]])
def test_a_folder_without_class_folders_is_an_error(tmp_path, names):
    with pytest.raises(UserError, match="there is no class folder with pictures"):
        list_source(tree(tmp_path, *names), ENDINGS)


def test_links_to_files_and_folders_are_followed(tmp_path):
    source = tree(tmp_path / "photos", "cat/1.jpg", "dog/1.jpg")
    tree(tmp_path / "elsewhere", "2.jpg", "deep/3.jpg")
    (tmp_path / "photos" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "dog" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (tmp_path / "photos" / "wolf").symlink_to(tmp_path / "elsewhere")
    listing = list_source(source, ENDINGS)
    assert dict(zip(listing.paths, listing.labels, strict=True)) == {
        "cat/1.jpg": "cat",
        "cat/more/2.jpg": "cat",
        "cat/more/deep/3.jpg": "cat",
        "dog/1.jpg": "dog",
        "dog/2.jpg": "dog",
        "wolf/2.jpg": "wolf",
        "wolf/deep/3.jpg": "wolf",
    }
    assert listing.set_aside == []


def test_a_loop_of_links_ends(tmp_path):
    source = tree(tmp_path, "cat/deep/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "deep" / "up").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "dogs").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "cats").symlink_to(tmp_path / "cat")
    (tmp_path / "dog" / "itself.jpg").symlink_to("itself.jpg")
    listing = list_source(source, ENDINGS)
    assert listing.paths == [
        "cat/deep/1.jpg",
        "cat/dogs/1.jpg",
        "cat/dogs/itself.jpg",
        "dog/1.jpg",
        "dog/cats/deep/1.jpg",
        "dog/itself.jpg",
    ]
    assert ("cat/deep/up", "is a link to a folder of the same class") in listing.set_aside
    assert ("cat/dogs/cats", "is a link to a folder of the same class") in listing.set_aside


def test_a_folder_goes_by_its_own_name_and_not_by_a_link_to_it(tmp_path):
    source = tree(tmp_path, "cat/z/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "a").symlink_to(tmp_path / "cat" / "z")
    listing = list_source(source, ENDINGS)
    assert listing.paths == ["cat/z/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == [("cat/a", "is a link to a folder of the same class")]


def test_a_pipe_is_set_aside_unopened(tmp_path):
    source = tree(tmp_path, "cat/1.jpg", "dog/1.jpg")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    listing = list_source(source, ENDINGS)
    assert listing.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == [("cat/2.jpg", "is no file but a pipe")]


def test_a_broken_link_is_a_picture_that_cannot_be_read(tmp_path):
    source = tree(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert list_source(source, ENDINGS).paths == ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]


def test_a_tree_may_be_as_deep_as_the_system_takes(tmp_path):
    deep = "/".join(["d"] * 300)
    listing = list_source(tree(tmp_path, f"cat/{deep}/1.jpg", "dog/1.jpg"), ENDINGS)
    assert listing.paths == [f"cat/{deep}/1.jpg", "dog/1.jpg"]


@pytest.fixture
def locked(monkeypatch):
    """Folders of this name cannot be read, not even by root."""
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.usefixtures("locked")
def test_a_folder_that_cannot_be_read_is_set_aside(tmp_path):
    source = tree(tmp_path, "cat/1.jpg", "cat/locked/2.jpg", "dog/1.jpg")
    listing = list_source(source, ENDINGS)
    assert listing.paths == ["cat/1.jpg", "dog/1.jpg"]
    assert listing.set_aside == [("cat/locked", "cannot be read: Permission denied")]


def test_pictures_are_found_at_any_depth_in_order_and_hidden_ones_are_not(tmp_path):
    for name in ("b.PNG", "a/b/c.jpg", "a/notes.txt", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root, found = list_pictures(str(tmp_path), ENDINGS)
    assert root == tmp_path
    assert [str(path.relative_to(root)) for path in found] == ["a/b/c.jpg", "b.PNG"]


def test_a_folder_without_a_picture_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"where no file, at any depth, ends in .jpg, .png; name a folder"):
        list_pictures(str(tmp_path), ENDINGS)


def test_a_path_that_is_no_folder_is_an_error(tmp_path):
    (tmp_path / "one.png").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        list_pictures(str(tmp_path / "one.png"), ENDINGS)
    with pytest.raises(UserError, match="does not exist"):
        list_pictures(str(tmp_path / "nowhere"), ENDINGS)


@pytest.mark.usefixtures("locked")
def test_pictures_to_predict_are_listed_as_those_to_train_on(tmp_path):
    source = tree(tmp_path / "photos", "a/1.jpg", "b/1.jpg", "b/Thumbs.db", "__MACOSX/1.jpg", "b/locked/2.jpg")
    tree(tmp_path / "elsewhere", "2.JPG", "deep/3.jpg")
    (tmp_path / "photos/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/b/loop").symlink_to(tmp_path / "photos/b")
    (tmp_path / "photos/b/gone.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "photos/b/pipe.jpg")
    root, found = list_pictures(source, ENDINGS)
    below = [str(path.relative_to(root)) for path in found]
    assert [path for path in below if path != "b/locked"] == list_source(source, ENDINGS).paths
    assert "b/locked" in below
