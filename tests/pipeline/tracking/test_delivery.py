import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from odd_text import NOT_UNICODE

from pipeline.tracking import delivery
from pipeline.tracking.contact import send_leftovers
from pipeline.tracking.delivery import Delivery, Queue, deliver
from pipeline.tracking.outbox import Entry, Outbox, outbox_folder

URI = "sqlite:////somewhere/mlflow.db"


class Server:
    """Notes the calls that it gets; refuses what has a tag "bad", and is away for the next `away` calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.away = 0

    def log_batch(self, run_id, metrics, params, tags):
        if self.away:
            self.away -= 1
            raise ConnectionError("Connection refused")
        names = [tag.key for tag in tags]
        if "bad" in names:
            raise MlflowException("Invalid tag", error_code=1000)  # INVALID_PARAMETER_VALUE
        self.calls.append(names)


@pytest.fixture
def server(monkeypatch) -> Server:
    server = Server()
    monkeypatch.setattr(delivery, "MlflowClient", lambda uri: server)
    return server


@contextmanager
def outbox_with(*tags: str) -> Iterator[tuple[Outbox, list[Entry]]]:
    """An outbox with an entry for each tag."""
    outbox = Outbox("r")
    with outbox.lock(URI):
        entries = [Entry(outbox.next_number(), "values", {"tags": {tag: "1"}}) for tag in tags]
        for entry in entries:
            outbox.write(entry)
        yield outbox, entries


def queue_of(outbox: Outbox, entries: list[Entry]) -> Queue:
    return Queue(((outbox, entry) for entry in entries), is_complete=True)


def test_what_waits_is_sent_in_one_call_and_leaves_the_outbox(server):
    with outbox_with("a", "b", "c") as (outbox, entries):
        assert list(deliver(URI, queue_of(outbox, entries))) == [Delivery("r", sent=3)]
        assert server.calls == [["a", "b", "c"]]
        assert outbox.is_empty()


def test_one_bad_entry_is_set_aside_and_does_not_block_the_others(server):
    with outbox_with("a", "bad", "c") as (outbox, entries):
        done = list(deliver(URI, queue_of(outbox, entries)))
        assert [one.sent for one in done] == [1, 0, 1]
        assert server.calls == [["a"], ["c"]]
        assert done[1].refused == Path(outbox.folder / "refused" / f"{entries[1].name}.json")
        assert done[1].refused.is_file()


def test_what_a_server_that_is_away_did_not_take_is_tried_again_in_the_same_order(server):
    server.away = 2
    with outbox_with("a", "b") as (outbox, entries):
        done = list(deliver(URI, queue_of(outbox, entries)))
        assert [type(one.error) for one in done] == [ConnectionError, ConnectionError, type(None)]
        assert server.calls == [["a", "b"]]


def test_an_entry_leaves_the_queue_once_the_caller_has_dealt_with_it(server):
    with outbox_with("a") as (outbox, entries):
        queue = queue_of(outbox, entries)
        deliveries = deliver(URI, queue)
        assert next(deliveries).sent == 1
        assert len(queue) == 1
        assert list(deliveries) == []
        assert len(queue) == 0


def test_a_queue_that_is_stopped_sends_nothing_more(server):
    with outbox_with("a") as (outbox, entries):
        queue = Queue()
        queue.append(outbox, entries[0])
        assert queue.holds(outbox)
        queue.stop()
        assert list(deliver(URI, queue)) == []
        assert queue.holds(outbox)


def test_one_bad_value_does_not_take_the_others_of_its_entry_with_it(tracking_server):
    run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    outbox = Outbox(run_id)
    points = [[f"train/{index}", 0.5, 1000, 1] for index in range(20)] + [
        ["bad@name", 0.5, 1000, 1],
        ["a//b", 1, 1000, 1],
    ]
    content = {"metrics": points, "params": {"seed": "0", "a:../b": "1"}, "tags": {"odd": f"{NOT_UNICODE}\0"}}
    with outbox.lock(tracking_server):
        entry = Entry(outbox.next_number(), "values", content)
        outbox.write(entry)
        (done,) = deliver(tracking_server, queue_of(outbox, [entry]))
        kept = json.loads(done.refused.read_text())["content"]
        assert outbox.read() == []
    assert ([point[0] for point in kept["metrics"]], list(kept["params"]), kept["tags"]) == (
        ["bad@name", "a//b"],
        [],
        {},
    )
    run = MlflowClient().get_run(run_id)
    assert len(run.data.metrics) == 20
    assert run.data.params == {"seed": "0", "a:../b": "1"}
    assert run.data.tags["odd"] == "caf\\udce9.png\\x00"


def test_one_bad_file_does_not_take_the_others_of_its_folder_with_it(tracking_server, tmp_path, monkeypatch):
    run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    for name in ("a.txt", "inner/b.txt", "inner/bad.txt"):
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_text(name)
    log_artifact = MlflowClient.log_artifact

    def refuse(client, run_id, path, place=None):
        if path.endswith("bad.txt"):
            raise MlflowException("Invalid name", error_code=1000)
        log_artifact(client, run_id, path, place)

    def refuse_all(client, run_id, folder, place=None):
        raise MlflowException("Invalid name", error_code=1000)

    monkeypatch.setattr(MlflowClient, "log_artifact", refuse)
    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse_all)
    outbox = Outbox(run_id)
    with outbox.lock(tracking_server):
        entry = Entry(outbox.next_number(), "folder", {"place": "kept"})
        outbox.write(entry, tmp_path / "made")
        (done,) = deliver(tracking_server, queue_of(outbox, [entry]))
        left = [path.name for path in done.refused.with_suffix("").rglob("*") if path.is_file()]
    assert left == ["bad.txt"]
    found = [item.path for place in ("kept", "kept/inner") for item in MlflowClient().list_artifacts(run_id, place)]
    assert found == ["kept/a.txt", "kept/inner", "kept/inner/b.txt"]


def test_the_values_of_a_run_that_was_deleted_are_not_tried_one_by_one(tracking_server, monkeypatch):
    run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    MlflowClient().delete_run(run_id)
    calls = []
    log_batch = MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *words, **more: calls.append(1) or log_batch(*words, **more))
    outbox = Outbox(run_id)
    with outbox.lock(tracking_server):
        entry = Entry(outbox.next_number(), "values", {"metrics": [[f"train/{n}", 0.5, 1000, n] for n in range(50)]})
        outbox.write(entry)
        (done,) = deliver(tracking_server, queue_of(outbox, [entry]))
        assert len(json.loads(done.refused.read_text())["content"]["metrics"]) == 50
    assert len(calls) == 1


def test_an_entry_that_is_wrong_in_itself_blocks_nothing(server):
    with outbox_with("a") as (outbox, entries):
        wrong = Entry(outbox.next_number(), "values", {"metrics": [["train/loss", 0.5]]})
        outbox.write(wrong)
        done = list(deliver(URI, queue_of(outbox, [wrong, *entries])))
        assert [one.sent for one in done] == [0, 1]


def test_what_stays_refused_is_sent_and_reported_once_more_and_then_kept(tracking_server):
    run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    outbox = Outbox(run_id)
    with outbox.lock(tracking_server):
        points = [["train/loss", 0.5, 1000, 1], ["bad@name", 0.5, 1000, 1]]
        outbox.write(Entry(outbox.next_number(), "values", {"metrics": points}))
    (sent,) = send_leftovers()
    assert sent.left == 1
    assert "They are not sent again" in sent.problem
    assert MlflowClient().get_run(run_id).data.metrics == {"train/loss": 0.5}
    assert list(send_leftovers()) == []
    (kept,) = (outbox_folder() / "refused" / run_id).glob("*.json")
    assert json.loads(kept.read_text())["content"]["metrics"] == [["bad@name", 0.5, 1000, 1]]
