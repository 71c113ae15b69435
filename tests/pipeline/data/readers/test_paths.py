import unicodedata
from pathlib import Path

import pytest

from pipeline.data.readers.paths import as_written, picture_below, set_name
from pipeline.data.readers.sources import list_source, source_name
from pipeline.system.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A folder of two pictures, beside a link to it."""
    for name in ("cat/1.jpg", "dog/2.jpg"):
        (tmp_path / "real" / name).parent.mkdir(parents=True)
        (tmp_path / "real" / name).touch()
    (tmp_path / "linked").symlink_to("real")
    return tmp_path / "real"


def rows(table, *paths):
    table.write_text("path,label\n" + "".join(f"{path},{number % 2}\n" for number, path in enumerate(paths)))
    return list_source(str(table), [])


@pytest.mark.parametrize("named", ["real", "linked"])
@pytest.mark.parametrize("written", ["real", "linked"])
def test_a_folder_may_have_one_name_in_the_table_and_another_on_the_command_line(tmp_path, folder, named, written):
    absolute = [tmp_path / written / name for name in ("cat/1.jpg", "dog/2.jpg")]
    listing = rows(tmp_path / named / "table.csv", *absolute)
    assert (listing.root, listing.paths) == (tmp_path / named, ["cat/1.jpg", "dog/2.jpg"])


def test_a_table_may_be_a_link_to_a_file_of_any_name(tmp_path, folder):
    (tmp_path / "cdef0123").write_text("path,label\ncat/1.jpg,cat\ndog/2.jpg,dog\n")
    (folder / "table.csv").symlink_to("../cdef0123")
    listing = list_source(str(folder / "table.csv"), [])
    assert (listing.name, listing.root, listing.paths) == ("real-table", folder, ["cat/1.jpg", "dog/2.jpg"])


def test_a_link_to_a_table_finds_the_pictures_beside_the_table_where_none_are_beside_the_link(tmp_path, folder):
    rows(folder / "table.csv", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "short").symlink_to("real/table.csv")
    assert list_source(str(tmp_path / "short"), []).root == folder


def test_a_folder_goes_by_the_name_that_the_user_gave_it(tmp_path, folder):
    listing = list_source(str(tmp_path / "linked"), [".jpg"])
    assert (listing.name, listing.root) == ("linked", tmp_path / "linked")
    assert as_written(tmp_path / "linked" / ".." / "real") == tmp_path / "real"
    (tmp_path / "cat").symlink_to("real/cat")
    assert as_written(tmp_path / "cat" / ".." / "dog") == folder / "dog"


def test_pictures_that_are_links_out_of_the_folder_are_taken_for_themselves(tmp_path, folder):
    (tmp_path / "store").mkdir()
    (folder / "day").symlink_to("../store")
    (folder / "3.jpg").symlink_to("../store/ab12")
    listing = rows(folder / "table.csv", tmp_path / "linked/3.jpg", tmp_path / "linked/day/4.jpg")
    assert listing.paths == ["3.jpg", "day/4.jpg"]


@pytest.mark.parametrize(
    "written",
    [
        "cat\\1.jpg", ".\\cat\\1.jpg", "../{here}/cat/1.jpg", "{folder}/cat/1.jpg", "file://{folder}/cat/1.jpg",
        "file://localhost{folder}/cat/1.jpg", "FILE:{folder}/cat/%31.jpg", "file:cat/1.jpg", "./cat//1.jpg",
    ],
)  # fmt: skip
def test_a_path_may_be_written_in_many_ways(folder, written):
    assert picture_below(folder, written.format(folder=folder, here=folder.name), "row 1") == "cat/1.jpg"


def test_names_that_look_like_something_else_are_kept(folder):
    for name in ("..1.jpg", "a\\b.jpg", "..more/3.jpg", "C:/1.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        assert picture_below(folder, name, "row 1") == name


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_in_whatever_form_of_unicode_the_disk_has_it(tmp_path, form):
    name = unicodedata.normalize(form, "caf\u00e9.jpg")
    (tmp_path / name).touch()
    for written in ("NFC", "NFD"):
        assert picture_below(tmp_path, unicodedata.normalize(written, name), "row 1") == name


@pytest.mark.parametrize(
    "written", ["../1.jpg", "cat/../../1.jpg", "file:///etc/passwd", "..\\1.jpg", "//server/1.jpg"]
)
def test_what_lies_outside_is_refused(folder, written):
    with pytest.raises(UserError, match=r"row 1 names .*, outside the table's folder"):
        picture_below(folder, written, "row 1")


def test_a_file_address_names_a_source_too(folder):
    assert list_source(f"file://{folder}", [".jpg"]).root == Path(folder)


def test_tables_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    names = {}
    for folder in ("birds", "dogs", "train"):
        (tmp_path / folder).mkdir()
        names[folder] = set_name(tmp_path / folder / "train.csv")
    assert names == {"birds": "birds-train", "dogs": "dogs-train", "train": "train"}
    monkeypatch.chdir(tmp_path / "dogs")
    assert set_name(Path("train.csv")) == source_name("../dogs/train.csv") == "dogs-train"
    assert source_name(str(tmp_path / "birds")) == source_name(f"{tmp_path}/birds/") == "birds"
    assert source_name("elpv") == "elpv"
    assert set_name(Path("/train.csv")) == "train"


def test_no_other_set_has_the_name_of_the_packaged_one(tmp_path):
    (tmp_path / "elpv").mkdir()
    assert set_name(tmp_path / "elpv") == set_name(tmp_path / "elpv" / "elpv.csv") == "elpv-pictures"
    assert set_name(tmp_path / "elpv.csv") == f"{tmp_path.name}-elpv"
