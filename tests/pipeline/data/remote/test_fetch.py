import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cache.maintenance import clear, list_entries
from pipeline.cache.markers import leave
from pipeline.data.manifest import build_manifest, load_manifest, save_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.remote import fetch as module
from pipeline.data.remote import fetcher
from pipeline.data.remote.addresses import pictures_folder
from pipeline.data.remote.fetch import fetch_listing, fetch_pictures
from pipeline.system.errors import UserError
from tests.picture_server import picture_server

PROJECT = Path(__file__).parents[4]
COUNT = 24


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetcher, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(fetcher, "LONGEST_PAUSE_SECONDS", 0.05)
    for number in range(COUNT):
        folder = tmp_path / "served" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    with picture_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def table(tmp_path, server):
    names = [f"{('cat', 'dog')[number % 2]}/{number}.png" for number in range(COUNT)]
    rows = [f"{server.uri}/{name},{name.partition('/')[0]}" for name in names]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows]))
    return tmp_path / "pets.csv"


def fetched(table, max_gib=1.0, recheck_hours=24.0):
    return fetch_listing(list_source(str(table), []), max_gib, recheck_hours)


def test_pictures_are_fetched_once_and_are_as_any_others(server, table, tmp_path, capsys):
    listing = fetched(table)
    assert listing.root == pictures_folder() / f"http+127.0.0.1%3A{server.port}"
    assert listing.paths[:2] == ["cat/0.png", "dog/1.png"]
    assert listing.missing == {}
    assert f"fetched {COUNT} pictures" in capsys.readouterr().out
    manifest = build_manifest(listing, 0.25, 0.25, 0.0, seed=0)
    assert (len(manifest.table), manifest.source) == (COUNT, f"{server.uri}/")
    save_manifest(manifest, tmp_path / "manifest")
    assert load_manifest(tmp_path / "manifest").paths == manifest.paths
    assert load_manifest(tmp_path / "manifest").addresses == manifest.addresses
    fetched(table)
    assert (server.count("GET"), server.count("HEAD")) == (COUNT, 0)
    server.shut()
    assert fetched(table).missing == {}, "without the server, too"


def test_another_machine_finds_them_in_its_own_cache(server, table, tmp_path, monkeypatch):
    save_manifest(build_manifest(fetched(table), 0.25, 0.25, 0.0, seed=0), tmp_path / "manifest")
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "other"))
    manifest = load_manifest(tmp_path / "manifest")
    assert not manifest.is_here
    assert fetch_pictures(manifest.root, manifest.addresses, 1.0) == {}
    assert all(path.is_relative_to(tmp_path / "other") and path.exists() for path in manifest.paths)


@pytest.mark.parametrize("address", ["../../etc/1.png", "/etc/1.png", "cat/2.png"])
def test_a_manifest_names_addresses_for_its_own_pictures_alone(server, table, tmp_path, address):
    save_manifest(build_manifest(fetched(table), 0.25, 0.25, 0.0, seed=0), tmp_path / "manifest")
    file = tmp_path / "manifest" / "addresses.csv"
    file.write_text(file.read_text().replace('"cat/0.png"', f'"{address}"'))
    with pytest.raises(UserError, match="was changed after it was written"):
        load_manifest(tmp_path / "manifest")


def test_those_that_cannot_be_fetched_are_set_aside_by_name_and_reason_and_count_as_bad(server, table):
    server.statuses["dog/1.png"] = 404
    server.pages.add("cat/0.png")
    listing = fetched(table)
    manifest = build_manifest(listing, 0.25, 0.25, 0.1, seed=0)
    assert manifest.set_aside.to_numpy().tolist() == [
        ["cat/0.png", "is a web page"],
        ["dog/1.png", "cannot be fetched: 404 Not Found"],
    ]
    with pytest.raises(UserError, match=r"2 of 24 pictures .* cannot be used, more than data.max_bad = 0.05"):
        build_manifest(listing, 0.25, 0.25, 0.05, seed=0)
    server.shut()
    assert fetched(table).missing == listing.missing, "a server that is away has nothing to add"
    server.open()
    server.statuses.clear()
    server.pages.clear()
    before = server.count("GET")
    assert fetched(table).missing == {}
    assert server.count("GET") == before + 2, "they alone are tried again"


def test_servers_are_asked_for_changes_now_and_then(server, table, capsys):
    fetched(table)
    (server.folder / "cat" / "0.png").write_bytes((server.folder / "dog" / "1.png").read_bytes())
    fetched(table)
    assert server.count("HEAD") == 0
    listing = fetched(table, recheck_hours=0.0)
    assert (server.count("HEAD"), server.count("GET")) == (COUNT, COUNT + 1)
    assert "fetched 1 pictures" in (printed := capsys.readouterr().out)
    assert "1 of which had changed" in printed
    assert (listing.root / "cat/0.png").read_bytes() == (listing.root / "dog/1.png").read_bytes()
    server.shut()
    assert fetched(table, recheck_hours=0.0).missing == {}
    assert f"{COUNT} pictures could not be asked for changes" in capsys.readouterr().err


def test_a_server_that_tells_no_state_is_believed(server, table):
    server.tells_state = False
    fetched(table)
    fetched(table, recheck_hours=0.0)
    assert server.count("GET") == COUNT


def test_more_than_the_recipe_allows_stops_and_a_larger_bound_goes_on(server, table, monkeypatch):
    monkeypatch.setattr(module, "FETCHED_AT_ONCE", 1)
    size = (server.folder / "cat" / "0.png").stat().st_size
    with pytest.raises(UserError, match=r"more than data.max_download_gib = .* allows: 5 of 24 are fetched and kept"):
        fetched(table, max_gib=5.5 * size / 2**30)
    assert fetched(table).missing == {}
    assert server.count("GET") <= COUNT + 2, "the one that was too many, and the one on its way behind it"


def test_several_that_start_at_once_fetch_each_picture_once(server, table):
    server.seconds = 0.02
    threads = [threading.Thread(target=fetched, args=(table,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.count("GET") == COUNT


PROGRAM = """
import sys
from pipeline.data.readers.sources import list_source
from pipeline.data.remote import fetch
fetch.FETCHED_AT_ONCE, fetch.SECONDS_BETWEEN_NOTES = 2, 0.0
fetch.fetch_listing(list_source(sys.argv[1], []), 1.0, 24.0)
"""


def test_what_was_killed_goes_on_and_leaves_no_half_files(server, table, cache):
    server.seconds = 0.1
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(table)], cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    )
    while server.count("GET") < COUNT // 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.seconds = 0.0
    before = server.count("GET")
    listing = fetched(table)
    assert server.count("GET") - before <= COUNT - COUNT // 2 + 4
    for path in listing.paths:
        assert (listing.root / path).read_bytes() == (server.folder / path).read_bytes()
    assert not list(pictures_folder().rglob(".unfinished/*"))


def test_the_cache_lists_and_clears_them_as_one(server, table):
    fetched(table)
    (entry,) = [entry for entry in list_entries() if entry.kind == "pictures"]
    assert (entry.state, entry.runs) == ("fetched", [])
    kept = {entry.kind: why for entry, why in clear()}
    assert "has opened it" in kept["pictures"], "by this process"
    leave()
    assert {entry.kind: why for entry, why in clear()}["pictures"] == ""
    assert not pictures_folder().exists()
    assert fetched(table).missing == {}
    assert server.count("GET") == 2 * COUNT
