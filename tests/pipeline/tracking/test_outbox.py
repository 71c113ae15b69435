import json
import os
import socket

import psutil
import pytest
from filelock import Timeout
from mlflow import MlflowClient

from pipeline.system.processes import identity
from pipeline.tracking.contact import send_leftovers
from pipeline.tracking.outbox import Entry, Outbox, first_group, outbox_folder
from tests.forked_processes import fork_program

SQLITE = "sqlite:////somewhere/mlflow.db"


def values(number: int, metrics: int = 0, params: tuple[str, ...] = (), tags: tuple[str, ...] = ()) -> Entry:
    points = [[f"train/{index}", 0.5, 1000, number] for index in range(metrics)]
    return Entry(
        number, "values", {"metrics": points, "params": dict.fromkeys(params, "1"), "tags": dict.fromkeys(tags)}
    )


def numbers(group: list[Entry]) -> list[int]:
    return [entry.number for entry in group]


def test_entries_are_read_in_the_order_of_writing():
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        entries = [Entry(outbox.next_number(), "text", {"text": str(turn), "place": "t"}) for turn in range(12)]
        for entry in reversed(entries):
            outbox.write(entry)
        assert outbox.read() == entries


def test_an_outbox_goes_on_counting_where_an_earlier_process_ended():
    with Outbox("r").lock(SQLITE):
        outbox = Outbox("r")
        outbox.folder.joinpath("00000004.json").write_text('{"kind": "text", "content": {}}')
    later = Outbox("r")
    with later.lock(SQLITE):
        assert [entry.number for entry in later.read()] == [4]
        assert later.next_number() == 5


def test_a_number_that_was_refused_is_not_given_again():
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        refused = Entry(outbox.next_number(), "text", {"text": "", "place": ".."})
        outbox.write(refused)
        assert outbox.set_aside(refused).parent == outbox.folder / "refused"
        assert outbox.read() == []
    with outbox.lock(SQLITE):
        assert outbox.next_number() == 2
        outbox.take_back_refused()
        assert outbox.read() == [refused]


def test_a_folder_is_kept_as_it_was(tmp_path):
    (tmp_path / "made" / "inner").mkdir(parents=True)
    (tmp_path / "made" / "inner" / "facts.json").write_text("[1]")
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        entry = Entry(outbox.next_number(), "folder", {"place": None})
        outbox.write(entry, tmp_path / "made")
        (tmp_path / "made" / "inner" / "facts.json").write_text("[2]")
        assert (outbox.folder / entry.name / "inner" / "facts.json").read_text() == "[1]"
        outbox.remove(entry)
        assert outbox.is_empty()


def test_what_lies_in_a_store_takes_no_second_space(cache):
    store = cache / "activations" / "abc"
    store.mkdir(parents=True)
    (store / "activations.safetensors").write_bytes(b"0" * 100)
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        entry = Entry(outbox.next_number(), "folder", {"place": None})
        outbox.write(entry, store)
        assert (outbox.folder / entry.name / "activations.safetensors").samefile(store / "activations.safetensors")
        outbox.remove(entry)
    assert (store / "activations.safetensors").read_bytes() == b"0" * 100


def test_what_a_killed_process_had_half_written_is_removed():
    outbox = Outbox("r")
    (outbox.folder / "00000001").mkdir(parents=True)
    (outbox.folder / "00000001" / "weights").write_text("half")
    (outbox.folder / ".00000002").write_text('{"kind": "te')
    with outbox.lock(SQLITE):
        assert outbox.read() == []
        assert outbox.next_number() == 1
        assert not (outbox.folder / "00000001").exists()
    assert not outbox.folder.exists()


def test_an_entry_that_cannot_be_read_is_set_aside_and_the_others_are_read():
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        good = Entry(2, "text", {"text": "", "place": "t"})
        (outbox.folder / "00000001.json").write_text("")
        outbox.write(good)
        assert outbox.read() == [good]
        assert (outbox.folder / "refused" / "00000001.json").exists()


def test_an_empty_outbox_disappears_and_one_with_entries_says_whose_it_is():
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        assert outbox.is_in_use()
    assert list(outbox_folder().iterdir()) == []
    with outbox.lock(SQLITE):
        outbox.write(Entry(1, "text", {}))
    assert outbox.writer() == {"uri": SQLITE, "host": socket.gethostname()}
    assert not outbox.is_in_use()


def test_an_outbox_is_held_by_one_process_at_a_time():
    outbox = Outbox("r")
    with outbox.lock(SQLITE), pytest.raises(Timeout), Outbox("r").lock(SQLITE):
        pass


def test_the_outbox_of_a_process_that_was_killed_can_be_held_and_is_of_nobody_alive():
    program = (
        "import os, signal; from pipeline.tracking.outbox import Entry, Outbox; outbox = Outbox('r')\n"
        "with outbox.lock('sqlite:///x.db'):\n"
        "    outbox.write(Entry(1, 'text', {'text': 'a', 'place': 't'})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert fork_program(program).wait() == -9
    outbox = Outbox("r")
    assert outbox.writer()["process"].startswith(f"{socket.gethostname()}:")
    assert not outbox.is_in_use()
    with outbox.lock(SQLITE):
        assert [entry.content["text"] for entry in outbox.read()] == ["a"]


HOST, PID, STARTED = identity().rsplit(":", 2)


@pytest.mark.parametrize(
    "process",
    [f"{HOST}:{2**22 + 1}:{STARTED}", f"{HOST}:{PID}:0.00", f"elsewhere:{PID}:{STARTED}"],
    ids=["gone", "its number is another's", "far"],
)
def test_a_process_is_known_by_its_number_its_start_and_its_machine(process):
    outbox = Outbox("r")
    with outbox.lock(SQLITE):
        assert outbox.is_in_use()
        facts = json.loads((outbox.folder / "writer.json").read_text())
        (outbox.folder / "writer.json").write_text(json.dumps(facts | {"process": process}))
        assert not outbox.is_in_use()


def test_an_outbox_that_an_earlier_version_left_is_not_in_use_and_is_sent(tracking_server):
    run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    outbox = Outbox(run_id)
    with outbox.lock(tracking_server):
        outbox.write(Entry(1, "text", {"text": "hello", "place": "greeting.txt"}))
    facts = {"uri": tracking_server, "host": HOST, "pid": os.getpid(), "started": psutil.Process().create_time()}
    (outbox.folder / "writer.json").write_text(json.dumps(facts))
    assert not outbox.is_in_use()
    assert [(one.run_id, one.sent, one.left) for one in send_leftovers()] == [(run_id, 1, 0)]


def test_values_that_wait_together_go_in_one_call():
    assert numbers(first_group([values(1, metrics=3), values(2, tags=("a",)), values(3, params=("b",))])) == [1, 2, 3]


def test_files_and_the_end_of_a_run_go_alone_and_after_what_was_said_before():
    text, status = Entry(2, "text", {}), Entry(3, "status", {})
    assert numbers(first_group([values(1, metrics=1), text, status])) == [1]
    assert numbers(first_group([text, status])) == [2]
    assert numbers(first_group([status, values(4, metrics=1)])) == [3]


def test_a_call_holds_no_more_than_the_server_takes():
    assert numbers(first_group([values(number, metrics=300) for number in range(1, 9)])) == [1, 2, 3]
    many = tuple(str(key) for key in range(60))
    assert numbers(first_group([values(1, params=many), values(2, params=tuple(f"{key}b" for key in many))])) == [1]
    assert numbers(first_group([values(1, metrics=1000), values(2, tags=("a",))])) == [1]


def test_a_tag_that_is_set_twice_keeps_its_last_value():
    assert numbers(first_group([values(1, tags=("a", "b")), values(2, tags=("c",)), values(3, tags=("a",))])) == [1, 2]


def test_what_is_sent_twice_is_there_once(tracking_server):
    """The server took it, and its answer was lost."""
    client = MlflowClient()
    run_id = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    outbox = Outbox(run_id)
    with outbox.lock(tracking_server):
        points = [["a", 0.5, 1000, 1], ["a", 0.25, 2000, 2], ["b", float("nan"), 1000, 1], ["c", float("inf"), 1000, 1]]
        outbox.write(Entry(1, "values", {"metrics": points, "params": {"p": "1"}, "tags": {"t": "x"}}))
        outbox.write(Entry(2, "text", {"text": "hello", "place": "greeting.txt"}))
        outbox.write(Entry(3, "status", {"status": "KILLED", "end_time_ms": 5000}))
        for _ in range(3):
            for entry in outbox.read():
                outbox.send(client, [entry])
        for entry in outbox.read():
            outbox.remove(entry)
    history = {name: client.get_metric_history(run_id, name) for name in "abc"}
    assert [(point.value, point.timestamp, point.step) for point in history["a"]] == [(0.5, 1000, 1), (0.25, 2000, 2)]
    assert [len(history[name]) for name in "bc"] == [1, 1]
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("KILLED", 5000)
    assert (run.data.params, run.data.tags["t"]) == ({"p": "1"}, "x")
