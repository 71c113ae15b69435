from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from pipeline.tracking import delivery
from pipeline.tracking.delivery import Delivery, Queue, deliver
from pipeline.tracking.outbox import Entry, Outbox

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
