import pytest

from pipeline.data.readers.sources import list_source, source_name
from pipeline.data.remote import fetcher
from pipeline.data.remote.table_file import fetch_table
from pipeline.system.errors import UserError
from tests.picture_server import picture_server

ROWS = "path,label\ncats/1 a.jpg,cat\n./dogs/2.jpg,dog\nhttps://a.org/3.jpg,dog\n"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetcher, "FIRST_PAUSE_SECONDS", 0.01)
    (tmp_path / "served" / "pets").mkdir(parents=True)
    (tmp_path / "served" / "pets" / "all.csv").write_text(ROWS)
    with picture_server(tmp_path / "served") as server:
        yield server


def test_the_paths_of_a_table_at_an_address_are_relative_to_it(server):
    source = f"{server.uri}/pets/all.csv"
    listing = list_source(source, [])
    assert listing.name == source_name(source) == "pets-all"
    assert list(listing.addresses.values()) == [
        f"{server.uri}/pets/cats/1%20a.jpg", f"{server.uri}/pets/dogs/2.jpg", "https://a.org/3.jpg",
    ]  # fmt: skip
    assert [path.rpartition("/")[2] for path in listing.paths] == ["1 a.jpg", "2.jpg", "3.jpg"]


def test_it_is_asked_for_changes_at_each_start_and_does_without_its_server(server, capsys):
    source = f"{server.uri}/pets/all.csv"
    assert fetch_table(source).read_text() == ROWS
    changed = ROWS.replace("dogs/2", "dogs/20")
    (server.folder / "pets" / "all.csv").write_text(changed)
    assert fetch_table(source).read_text() == changed
    server.shut()
    assert fetch_table(source).read_text() == changed
    assert "1 table could not be asked for changes" in capsys.readouterr().err


def test_what_is_wrong_with_it_is_told(server):
    with pytest.raises(UserError, match=r"data\.source is http.*/pets/none\.csv, which cannot be fetched: 404"):
        list_source(f"{server.uri}/pets/none.csv", [])
    with pytest.raises(UserError, match=r"a password or a signature in it, which the run's page would show") as caught:
        list_source("https://me:secret@a.org/pets.csv", [])
    assert "secret" not in str(caught.value)
    (server.folder / "pets" / "all.csv").write_text("path,label\n../1.jpg,cat\n")
    with pytest.raises(UserError, match=r"pets/all\.csv, row 1 names \.\./1\.jpg, outside the table's folder"):
        list_source(f"{server.uri}/pets/all.csv", [])
