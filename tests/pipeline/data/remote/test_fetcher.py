import pytest

from pipeline.data.remote import fetcher as module
from pipeline.data.remote.fetched import UNFINISHED
from pipeline.data.remote.fetcher import Fetcher, Stopped, TooMuch
from pipeline.system.errors import UserError
from tests.picture_server import picture_server


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    for number in range(5):
        (tmp_path / "served" / f"{number}.jpg").write_bytes(b"x" * 1000)
    with picture_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def fetcher(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.05)
    (tmp_path / "cache" / UNFINISHED).mkdir(parents=True)
    return Fetcher(tmp_path / "cache", 1e9, 0, patience_seconds=0.5)


def unfinished(fetcher):
    return list((fetcher.folder / UNFINISHED).iterdir())


def test_a_file_is_brought_whole_or_not_at_all(server, fetcher):
    assert fetcher.bring("a/1.jpg", f"{server.uri}/1.jpg", None).came
    server.cut.add("2.jpg")
    brought = fetcher.bring("a/2.jpg", f"{server.uri}/2.jpg", None)
    assert brought.file is None
    assert brought.missing.startswith("cannot be fetched: ")
    assert [path.name for path in (fetcher.folder / "a").iterdir()] == ["1.jpg"]
    assert unfinished(fetcher) == []
    assert fetcher.taken_bytes == 1000, "what did not come whole takes nothing"


def test_one_that_a_server_does_not_give_although_it_gives_others_is_missing(server, fetcher):
    fetcher.bring("1.jpg", f"{server.uri}/1.jpg", None)
    server.statuses |= {"2.jpg": 404, "3.jpg": 500}
    assert fetcher.bring("2.jpg", f"{server.uri}/2.jpg", None).missing == "cannot be fetched: 404 Not Found"
    assert server.requests["GET 2.jpg"] == 1
    assert fetcher.bring("3.jpg", f"{server.uri}/3.jpg", None).missing.startswith("cannot be fetched: 500 ")
    assert server.requests["GET 3.jpg"] == module.ATTEMPTS


def test_a_server_that_is_away_at_the_start_is_told_at_once(server, fetcher):
    server.shut()
    with pytest.raises(UserError, match=rf"server of pictures {server.uri} cannot be reached \(.*refused"):
        fetcher.bring("1.jpg", f"{server.uri}/1.jpg", None)


def test_one_that_goes_away_later_is_waited_for_and_then_told(server, fetcher, monkeypatch):
    said = []

    def note(words):
        said.append(words)
        server.open()

    monkeypatch.setattr(module, "say", note)
    fetcher.patience_seconds = 60.0
    fetcher.bring("1.jpg", f"{server.uri}/1.jpg", None)
    server.shut()
    assert fetcher.bring("2.jpg", f"{server.uri}/2.jpg", None).came
    assert "is away" in said[0]
    assert "waiting for it, 1 min 00 s at most" in said[0]
    server.shut()
    monkeypatch.setattr(module, "say", said.append)
    fetcher.patience_seconds = 0.2
    with pytest.raises(UserError, match=r"has gone away .* what was fetched is kept"):
        fetcher.bring("3.jpg", f"{server.uri}/3.jpg", None)


def test_what_was_fetched_before_comes_again_only_if_it_has_changed(server, fetcher):
    first = fetcher.bring("1.jpg", f"{server.uri}/1.jpg", None).file
    again = fetcher.bring("1.jpg", f"{server.uri}/1.jpg", first)
    assert (again.came, server.requests["GET 1.jpg"]) == (False, 1)
    assert again.file.asked_seconds > first.asked_seconds
    (server.folder / "1.jpg").write_bytes(b"y" * 500)
    changed = fetcher.bring("1.jpg", f"{server.uri}/1.jpg", first)
    assert (changed.came, changed.file.bytes) == (True, 500)
    assert (fetcher.folder / "1.jpg").read_bytes() == b"y" * 500
    assert fetcher.taken_bytes == 500
    server.shut()
    kept = fetcher.bring("1.jpg", f"{server.uri}/1.jpg", changed.file)
    assert (kept.file, kept.missing) == (changed.file, "")
    assert kept.unasked


def test_files_take_no_more_than_they_may(server, fetcher):
    fetcher.max_bytes = 2500
    for number in (1, 2):
        fetcher.bring(f"{number}.jpg", f"{server.uri}/{number}.jpg", None)
    with pytest.raises(TooMuch):
        fetcher.bring("3.jpg", f"{server.uri}/3.jpg", None)
    assert sorted(path.name for path in fetcher.folder.glob("*.jpg")) == ["1.jpg", "2.jpg"]


def test_a_file_where_another_has_its_folder_is_missing(server, fetcher):
    (fetcher.folder / "a").mkdir()
    (fetcher.folder / "b").touch()
    assert "cannot be kept" in fetcher.bring("a", f"{server.uri}/1.jpg", None).missing
    assert "cannot be kept" in fetcher.bring("b/1.jpg", f"{server.uri}/1.jpg", None).missing


def test_a_server_that_is_away_is_waited_for_no_longer_when_all_stops(server, fetcher, monkeypatch):
    fetcher.bring("1.jpg", f"{server.uri}/1.jpg", None)
    server.shut()
    fetcher.patience_seconds = 600.0
    monkeypatch.setattr(module, "say", lambda words: fetcher.stop())
    with pytest.raises(Stopped):
        fetcher.bring("2.jpg", f"{server.uri}/2.jpg", None)


def test_what_is_on_its_way_is_given_up_when_all_stops(server, fetcher):
    fetcher.stop()
    with pytest.raises(Stopped):
        fetcher.bring("1.jpg", f"{server.uri}/1.jpg", None)
    assert unfinished(fetcher) == []
