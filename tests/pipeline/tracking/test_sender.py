"""A real server, behind a gate that is shut while a run is open."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow_server import Gate, MlflowServer

from pipeline import tracking
from pipeline.system.errors import UserError
from pipeline.tracking import runs, sender
from pipeline.tracking.contact import send_leftovers
from pipeline.tracking.outbox import outbox_folder
from pipeline.tracking.sender import call_server
from pipeline.tracking.server import SEND, Unreachable

TAGS = {tracking.STAGE: "resize", tracking.FINGERPRINT: "f"}
NO_RUN = "0" * 32
SHORT_PAUSES = {
    "SECONDS_BEFORE_REPORTING": 0.0, "SHORTEST_PAUSE_SECONDS": 0.05, "LONGEST_PAUSE_SECONDS": 0.2,
    "SECONDS_BETWEEN_QUESTIONS": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def gate(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(server.uri)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "30")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name, seconds in SHORT_PAUSES.items():
        monkeypatch.setattr(sender, name, seconds)
    monkeypatch.setattr(runs, "SECONDS_TO_LEAVE", 0.5)
    yield gate
    gate.close()


def history(server: MlflowServer, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(server.uri).get_metric_history(run_id, name)]


def look_up(server: MlflowServer, run_id: str) -> mlflow.entities.Run:
    return MlflowClient(server.uri).get_run(run_id)


def wait_until_sent() -> None:
    deadline = time.monotonic() + 600
    while list(outbox_folder().glob("*/[0-9]*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["shut", "lost", "503"])
def test_a_server_that_goes_away_costs_no_metric_and_doubles_none(server, gate, mode, capsys):
    with tracking.open_run("resize", TAGS, {"resize.image_px": 64}) as run_id:
        for epoch in range(9):
            gate.mode = {3: mode, 6: "open"}.get(epoch, gate.mode)
            started = time.monotonic()
            tracking.log_points(run_id, [("train/loss", 1 / (epoch + 1), epoch), ("lr/head", 0.1, epoch)])
            tracking.log_text(run_id, f"epoch {epoch}", f"{epoch}.txt")
            assert time.monotonic() - started < 0.3
            time.sleep(0.1)
        done = tracking.mark_done(run_id, 1.5)
    assert done.metrics["train/loss"] == 1 / 9
    assert history(server, run_id, "train/loss") == [(epoch, 1 / (epoch + 1)) for epoch in range(9)]
    assert history(server, run_id, "lr/head") == [(epoch, 0.1) for epoch in range(9)]
    run = look_up(server, run_id)
    assert (run.info.status, run.data.tags[tracking.DONE]) == ("FINISHED", "true")
    assert run.data.params == {"resize.image_px": "64"}
    artifacts = {item.path for item in MlflowClient(server.uri).list_artifacts(run_id)}
    assert artifacts == {f"{epoch}.txt" for epoch in range(9)}
    assert list(outbox_folder().iterdir()) == []
    told = capsys.readouterr()
    assert f"The tracking server at {gate.uri} is away (" in told.err
    assert "is back; what was kept is sent" in told.out


def test_what_waited_together_is_sent_in_one_call_and_once(server, gate):
    with tracking.open_run("resize", TAGS, {}) as run_id:
        wait_until_sent()
        gate.mode = "shut"
        for epoch in range(50):
            tracking.log_metrics(run_id, {"train/loss": 0.5}, step=epoch)
        time.sleep(0.2)
        gate.requests.clear()
        gate.mode = "open"
    # The one that found the gate shut may be tried once more alone, before the others.
    assert sum(path.endswith("log-batch") for path in gate.requests) <= 2
    assert len(history(server, run_id, "train/loss")) == 50


def test_metrics_keep_the_time_at_which_they_were_measured(server, gate):
    with tracking.open_run("resize", TAGS, {}) as run_id:
        gate.mode = "shut"
        before = time.time() * 1000
        tracking.log_metrics(run_id, {"train/loss": 0.5}, step=1)
        after = time.time() * 1000
        time.sleep(0.2)
        gate.mode = "open"
    (point,) = MlflowClient(server.uri).get_metric_history(run_id, "train/loss")
    assert int(before) <= point.timestamp <= after


def test_a_run_that_cannot_be_told_in_time_is_whole_once_it_is_sent(server, gate, monkeypatch):
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "0.5")
    with (  # noqa: PT012
        pytest.raises(Unreachable) as told,
        tracking.open_run("main", {tracking.STAGE: "main"}, {}) as parent,
        tracking.open_run("resize", TAGS, {}) as run_id,
    ):
        wait_until_sent()
        gate.mode = "shut"
        tracking.log_metrics(run_id, {"train/loss": 0.5}, step=1)
        tracking.mark_done(run_id, 1.5)
    assert str(outbox_folder()) in str(told.value)
    assert SEND in str(told.value)
    assert not tracking.is_open()
    gate.mode = "open"
    sent: set[str] = set()
    deadline = time.monotonic() + 600
    while outbox_folder().exists() and any(outbox_folder().iterdir()):  # a call that was cut off may still hold one
        assert time.monotonic() < deadline
        sent |= {one.run_id for one in send_leftovers() if one.sent}
    assert sent == {run_id, parent}
    assert look_up(server, run_id).info.status == "FINISHED"
    assert look_up(server, run_id).data.tags[tracking.DONE] == "true"
    assert history(server, run_id, "train/loss") == [(1, 0.5)]
    assert look_up(server, parent).info.status == "FAILED"


def test_a_run_that_is_stopped_while_the_server_is_away_ends_at_once_and_is_killed_once_sent(server, gate, capsys):
    with pytest.raises(KeyboardInterrupt), tracking.open_run("resize", TAGS, {}) as run_id:  # noqa: PT012
        wait_until_sent()
        gate.mode = "shut"
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 60  # and not ten minutes, its patience
    assert SEND in capsys.readouterr().err
    gate.mode = "open"
    assert look_up(server, run_id).info.status == "RUNNING"
    assert [one.left for one in send_leftovers(gate.uri)] == [0]
    run = look_up(server, run_id)
    assert (run.info.status, run.data.tags[tracking.REASON]) == ("KILLED", "stopped by Ctrl-C or SIGTERM")


def test_a_run_of_mlflow_run_is_killed_with_the_run_that_it_points_to_once_both_are_sent(server, gate, monkeypatch):
    handed = MlflowClient(server.uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    tracking.use_experiment("farm")
    with pytest.raises(KeyboardInterrupt), tracking.open_run("resize", TAGS, {}) as run_id:  # noqa: PT012
        wait_until_sent()
        gate.mode = "shut"
        raise KeyboardInterrupt
    gate.mode = "open"
    assert {one.run_id for one in send_leftovers(gate.uri) if one.left == 0} == {run_id, handed}
    for run in (look_up(server, run_id), look_up(server, handed)):
        assert (run.info.status, run.data.tags[tracking.REASON]) == ("KILLED", "stopped by Ctrl-C or SIGTERM")


def test_what_the_server_refuses_is_said_once_set_aside_and_holds_nothing_up(server, gate, capsys):
    with tracking.open_run("resize", TAGS, {}) as run_id:
        gate.mode = "shut"  # so that all wait together
        tracking.log_metrics(run_id, {"train/loss": 0.5}, step=1)
        tracking.log_metrics(run_id, {"no@name": 0.5}, step=1)
        tracking.log_metrics(run_id, {"valid/loss": 0.25}, step=1)
        time.sleep(0.3)
        gate.mode = "open"
    assert history(server, run_id, "train/loss") == [(1, 0.5)]
    assert history(server, run_id, "valid/loss") == [(1, 0.25)]
    assert look_up(server, run_id).info.status == "FINISHED"
    told = capsys.readouterr().err
    assert told.count("refuses what was logged") == 1
    (aside,) = outbox_folder().glob("*/refused/*.json")
    assert str(aside) in told
    assert "no@name" in aside.read_text()
    (left,) = send_leftovers()
    assert (left.sent, left.left) == (0, 1)
    assert "The server refuses it" in left.problem


def test_a_run_that_was_deleted_meanwhile_stops_nothing(server, gate, capsys):
    with tracking.open_run("resize", TAGS, {}) as run_id:
        wait_until_sent()
        MlflowClient(server.uri).delete_run(run_id)
        tracking.log_metrics(run_id, {"train/loss": 0.5}, step=1)
    assert "refuses what was logged" in capsys.readouterr().err


def test_a_stage_that_starts_while_the_server_is_away_waits_for_it_and_makes_one_run(server, gate):
    with tracking.open_run("main", {tracking.STAGE: "main"}, {}) as parent:
        gate.mode = "lost"

        threading.Timer(0.5, setattr, (gate, "mode", "open")).start()
        with tracking.open_run("resize", TAGS, {}) as run_id:
            pass
    client = MlflowClient(server.uri)
    nested = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert [run.info.run_id for run in nested] == [run_id]
    assert nested[0].info.status == "FINISHED"


def test_a_question_is_asked_again_until_patience_is_over(gate, monkeypatch):
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "0.5")
    gate.mode = "shut"
    started = time.monotonic()
    with pytest.raises(Unreachable, match="Run the same command again when it is back"):
        call_server(lambda: MlflowClient().get_run(NO_RUN))
    assert 0.5 <= time.monotonic() - started < 6


def test_an_error_of_a_server_that_is_there_is_not_waited_for(gate):
    started = time.monotonic()
    with pytest.raises(UserError, match="There is no run"):
        tracking.run_of(NO_RUN)

    def missing() -> None:
        raise FileNotFoundError("artifact")

    with pytest.raises(FileNotFoundError):
        call_server(missing)
    assert time.monotonic() - started < 60  # and not ten minutes, its patience


def test_a_reason_is_left_in_the_outbox_where_the_server_is_away(server, gate):
    with tracking.open_run("resize", TAGS, {}) as run_id:
        pass
    gate.mode = "shut"
    started = time.monotonic()
    tracking.tag_reason(run_id, "The recipe is wrong.")
    assert time.monotonic() - started < 60
    gate.mode = "open"
    assert [one.sent for one in send_leftovers()] == [1]
    assert look_up(server, run_id).data.tags[tracking.REASON] == "The recipe is wrong."


def test_files_come_back_as_they_were_logged(gate, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
    with tracking.open_run("resize", TAGS, {}) as run_id:
        gate.mode = "shut"
        tracking.log_folder(run_id, tmp_path / "made", "checkpoint")
        (tmp_path / "made" / "weights.bin").unlink()
        time.sleep(0.2)
        gate.mode = "open"
        folder = tracking.artifact(run_id, "checkpoint")
    assert (Path(folder) / "weights.bin").read_bytes() == bytes(range(256)) * 1000
