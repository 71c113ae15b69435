import os

import pytest
from mlflow import MlflowClient

from pipeline.__main__ import main
from pipeline.tracking.outbox import Entry, Outbox


@pytest.fixture
def run_id(tracking_server: str) -> str:
    return MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id


def leave(run_id: str, uri: str, *said: tuple[str, dict[str, object]]) -> None:
    """What a process that is no more has left in the outbox of a run."""
    outbox = Outbox(run_id)
    with outbox.hold(uri):
        for kind, content in said:
            outbox.write(Entry(outbox.next_number(), kind, content))


def test_what_is_left_is_sent_and_said_and_the_run_is_ended(run_id, tracking_server, capsys):
    metrics = [["train/loss", 0.5, 1000, 1], ["train/loss", 0.25, 2000, 2]]
    status = {"status": "FINISHED", "end_time_ms": 3000}
    leave(run_id, tracking_server, ("values", {"metrics": metrics}), ("status", status))
    assert main(["tracking", "send"]) == 0
    assert capsys.readouterr().out == f"Sent 2 entries of run {run_id} to {tracking_server}.\n"
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.info.end_time, run.data.metrics) == ("FINISHED", 3000, {"train/loss": 0.25})
    assert main(["tracking", "send"]) == 0
    assert capsys.readouterr().out == "Nothing is left to be sent.\n"


def test_what_a_server_that_is_away_has_to_wait_for_stays_and_is_told(capsys):
    leave("a" * 32, "http://127.0.0.1:9", ("text", {"text": "hello", "place": "t"}))
    assert main(["tracking", "send"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"1 entries of run {'a' * 32} for http://127.0.0.1:9 are left. The tracking server at ")
    assert len(Outbox("a" * 32).read()) == 1


def test_what_another_process_still_writes_is_left_to_it(run_id, tracking_server, capsys):
    outbox = Outbox(run_id)
    with outbox.hold(tracking_server):
        outbox.write(Entry(outbox.next_number(), "text", {"text": "hello", "place": "t"}))
        assert main(["tracking", "send"]) == 0
        assert len(outbox.read()) == 1
    assert "Nothing is left" in capsys.readouterr().out


def test_without_a_command_it_says_what_there_is(capsys):
    assert main([]) == 2
    assert "THING" in capsys.readouterr().err
