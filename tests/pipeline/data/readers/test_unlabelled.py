"""Pictures to be predicted: a folder's, or those that a table names, whose other columns do not count."""

import pandas as pd
import pytest

from pipeline.data.readers.unlabelled import find_pictures, list_unlabelled
from pipeline.system.errors import UserError
from tests.picture_server import picture_server

ENDINGS = (".png",)
ROWS = {
    "path": ["b.png", "inner/a.gif", "b.png", "none.png"],
    "probability/cat": ["", "1", "0.5", ""],
    "split": ["mine", "", "", ""],
    "weight": ["-1", "", "", ""],
}


def test_of_a_folder_all_pictures_are_listed(tmp_path):
    for name in ("b.png", "inner/a.PNG", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_pictures(str(tmp_path)) == str(tmp_path)
    listing = list_unlabelled(str(tmp_path), ENDINGS)
    assert (listing.root, listing.paths, listing.labels) == (tmp_path, ["b.png", "inner/a.PNG"], ["", ""])


@pytest.mark.parametrize("name", ["some.csv", "some.tsv", "some.parquet"])
def test_of_a_table_the_paths_count_alone_in_their_order_and_once(tmp_path, name, capsys):
    table = pd.DataFrame(ROWS)
    if name.endswith("parquet"):
        table.to_parquet(tmp_path / name)
    else:
        table.to_csv(tmp_path / name, index=False, sep="," if name.endswith("csv") else "\t")
    assert find_pictures(str(tmp_path / name)) == str(tmp_path / name)
    listing = list_unlabelled(str(tmp_path / name), ENDINGS)
    assert (listing.root, listing.paths) == (tmp_path, ["b.png", "inner/a.gif", "none.png"])
    assert "left out: 1 of the rows" in capsys.readouterr().out


def test_a_table_at_an_address_names_pictures_beside_it(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "some.csv").write_text("path\na.png\ninner/b.png\n")
    with picture_server(tmp_path / "served") as server:
        address = f"{server.uri}/some.csv"
        assert find_pictures(address) == address
        assert server.requests.total() == 0, "it is looked for later"
        listing = list_unlabelled(address, ENDINGS)
        assert list(listing.addresses.values()) == [f"{server.uri}/a.png", f"{server.uri}/inner/b.png"]
        with pytest.raises(UserError, match=r"^data is http.*none\.csv, which cannot be fetched: 404"):
            list_unlabelled(f"{server.uri}/none.csv", ENDINGS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("nowhere", r"^data is nowhere, which does not exist"),
        ("notes.txt", r"^data is notes\.txt, which is a file, not a folder"),
        ("https://me:secret@a.org/b.csv", r"^data is https://a\.org/b\.csv with a password"),
        ("ftp:///b.csv", r"no whole address"),
    ],
)
def test_what_is_no_source_of_pictures_is_told_at_once(tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=words):
        find_pictures(data)


@pytest.mark.parametrize(
    ("content", "words"),
    [("path\n", "no row names a picture"), ("file\na.png\n", r"has no column path \(its columns are: file\); add it")],
)
def test_a_table_without_pictures_is_refused(tmp_path, content, words):
    (tmp_path / "some.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        list_unlabelled(str(tmp_path / "some.csv"), ENDINGS)
