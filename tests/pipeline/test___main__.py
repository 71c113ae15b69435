import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.__main__ import main
from pipeline.cache.markers import beside, leave, note_use
from pipeline.cache.store import open_or_build
from pipeline.recipe.reference import reference
from pipeline.tracking.outbox import Entry, Outbox


@pytest.fixture
def run_id(tracking_server: str) -> str:
    return MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id


def leave_entries(run_id: str, uri: str, *entries: tuple[str, dict[str, object]]) -> None:
    """Leave entries in the outbox of a run, as a process that was killed does."""
    outbox = Outbox(run_id)
    with outbox.lock(uri):
        for kind, content in entries:
            outbox.write(Entry(outbox.next_number(), kind, content))


def test_what_is_left_is_sent_and_said_and_the_run_is_ended(run_id, tracking_server, capsys):
    metrics = [["train/loss", 0.5, 1000, 1], ["train/loss", 0.25, 2000, 2]]
    status = {"status": "FINISHED", "end_time_ms": 3000}
    leave_entries(run_id, tracking_server, ("values", {"metrics": metrics}), ("status", status))
    assert main(["tracking", "send"]) == 0
    assert capsys.readouterr().out == f"Sent 2 entries of run {run_id} to {tracking_server}.\n"
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.metrics) == ("FINISHED", 3000, {"train/loss": 0.25})
    assert main(["tracking", "send"]) == 0
    assert capsys.readouterr().out == "Nothing is left to be sent.\n"


def test_what_a_server_that_is_away_has_to_wait_for_stays_and_is_told(capsys):
    leave_entries("a" * 32, "http://127.0.0.1:9", ("text", {"text": "hello", "place": "t"}))
    assert main(["tracking", "send"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"1 entries of run {'a' * 32} for http://127.0.0.1:9 are left. The tracking server at ")
    assert len(Outbox("a" * 32).read()) == 1


def test_what_another_process_still_writes_is_left_to_it(run_id, tracking_server, capsys):
    outbox = Outbox(run_id)
    with outbox.lock(tracking_server):
        outbox.write(Entry(outbox.next_number(), "text", {"text": "hello", "place": "t"}))
        assert main(["tracking", "send"]) == 0
        assert len(outbox.read()) == 1
    assert "Nothing is left" in capsys.readouterr().out


def test_without_a_command_it_says_what_there_is(capsys):
    assert main([]) == 2
    assert "THING" in capsys.readouterr().err


PROJECT = Path(__file__).resolve().parents[2]


RUN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def store():
    """A pixel store of 12 kB, used three days ago by one run."""
    parts = {"pictures": "hash", "size_px": 300, "fit": "crop", "grey": True, "decoder_version": 1}

    def build(folder):
        (folder / "data.bin").write_bytes(bytes(12_000))

    place, _ = open_or_build("pixels", parts, build)
    leave()
    note_use(place, RUN)
    used = time.time() - 3 * 86400
    os.utime(beside(place, ".uses"), (used, used))
    return place


def run(*arguments):
    """(exit code, standard output, standard error) of the command as a user types it."""
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def test_the_list_shows_each_store_and_the_room_that_is_left(store, cache):
    code, said, _ = run("cache", "list")
    assert code == 0
    row = next(line for line in said.splitlines() if "pixels" in line)
    cells = [cell.strip() for cell in row.strip("│┃ ").split("│")]
    assert cells == ["pixels", store.name[:12], "12.3 kB", "3 d", "300 px, crop, grey", RUN[:8], "whole"]
    assert re.search(rf"^12\.3 kB in {cache}; [\d.]+ [MGT]B free on its disk\.$", said, re.MULTILINE)


def test_an_empty_cache_is_listed_too(cache):
    code, said, _ = run("cache", "list")
    assert code == 0
    assert said.startswith(f"0 bytes in {cache}; ")


def test_whether_all_is_sound_is_the_exit_code(store, capsys):
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == "0 of 1 stores are damaged.\n"
    (store / "data.bin").write_bytes(bytes(11_999) + b"1")
    assert main(["cache", "verify"]) == 1
    assert capsys.readouterr().out.startswith(f"Damaged: pixels {store.name} (the content of data.bin has changed).\n")
    assert main(["cache", "verify", "--remove"]) == 1
    assert not store.exists()
    assert main(["cache", "verify"]) == 0


def test_what_is_cleared_is_said(store, capsys, cache):
    assert main(["cache", "clear"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Removed pixels {store.name} (12.3 kB).\nFreed 12.3 kB.\n0 bytes in {cache}; ")
    assert not store.exists()


def test_what_stays_is_said_with_its_reason(store, capsys):
    open_or_build("pixels", {"size_px": 8}, lambda folder: None)
    assert main(["cache", "clear"]) == 0
    assert f": process {os.getpid()} has opened it.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "goes"),
    [
        (["--older-than", "4d"], False),
        (["--older-than", "71h"], True),
        (["--older-than", "2.5d"], True),
        (["--older-than", "1w"], False),
        (["--max-gb", "0.00002"], False),
        (["--max-gb", "0.00001"], True),
        (["--max-gb", "0"], True),
        (["--older-than", "4d", "--max-gb", "0"], True),
        ([], True),
    ],
    ids=str,
)
def test_stores_go_by_their_age_and_their_size(store, options, goes):
    assert main(["cache", "clear", *options]) == 0
    assert store.exists() != goes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cache", "clear", "--older-than", "soon"], "soon is no age; give a number of hours, days or weeks"),
        (["cache", "clear", "--older-than", "30"], "30 is no age"),
        (["cache", "clear", "--max-gb", "-1"], "--max-gb"),
        (["cache", "clear", "--max-gb", "much"], "much is no size; give a number of GB"),
        (["cache", "clear", "everything"], "unrecognized arguments: everything"),
        (["cache", "empty"], "empty"),
        (["cache"], "list|verify|clear"),
        (["cash"], "cash"),
        ([], "THING"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_told_in_one_sentence(store, capsys, arguments, words):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert told.err.count("\n") == 1
    assert store.exists()


def test_a_command_is_there_before_anything_heavy_is(cache):
    program = (
        "import sys; from pipeline.__main__ import main; main(['cache', 'list']);"
        "assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_key_of_the_recipe_is_printed(capsys):
    assert main(["recipe"]) == 0
    assert capsys.readouterr().out == reference()
