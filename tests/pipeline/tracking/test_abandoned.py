"""Runs that no process works on any more are closed, and no others."""

import time

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from pipeline import tracking
from pipeline.system.processes import identity
from pipeline.tracking import abandoned
from pipeline.tracking.abandoned import close_abandoned

pytestmark = pytest.mark.usefixtures("tracking_server")

HERE, NUMBER, STARTED = identity().rsplit(":", 2)
DEAD = f"{HERE}:{NUMBER}:{float(STARTED) - 50:.2f}"
ELSEWHERE = "another-machine:7:1.00"
MINUTE_MS = 60_000


def experiment() -> str:
    return mlflow.get_experiment_by_name("test").experiment_id


def running(tags: dict[str, str], minutes_ago: float = 0) -> str:
    started = int(time.time() * 1000 - minutes_ago * MINUTE_MS)
    return MlflowClient().create_run(experiment(), start_time=started, tags=tags).info.run_id


def close() -> None:
    """What a process that starts a run does."""
    close_abandoned(running({tracking.PROCESS: identity()}))


def status(run_id: str) -> str:
    return MlflowClient().get_run(run_id).info.status


def test_the_run_of_a_killed_process_is_closed_as_killed_and_says_why(capsys):
    run_id = running({tracking.PROCESS: DEAD})
    close()
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "KILLED"
    assert "killed" in run.data.tags[tracking.REASON]
    assert "closed 1 run" in capsys.readouterr().out


def test_a_run_that_was_killed_between_its_mark_and_its_end_has_finished_and_is_reused():
    tags = {tracking.PROCESS: DEAD, tracking.STAGE: "lr_find", tracking.FINGERPRINT: "f" * 64}
    done, half = running({**tags, tracking.DONE: "true"}), running(tags)
    pointer = running({tracking.PROCESS: DEAD, tracking.REUSED: done})
    MlflowClient().set_terminated(pointer, "FAILED")  # by `mlflow run`
    close()
    assert (status(done), status(half), status(pointer)) == ("FINISHED", "KILLED", "FINISHED")
    assert tracking.REASON not in MlflowClient().get_run(done).data.tags
    assert tracking.find_done("f" * 64, ()).run_id == done


def test_the_run_of_a_process_that_works_on_it_stays_open():
    run_id = running({tracking.PROCESS: identity()})
    close()
    assert status(run_id) == "RUNNING"


def test_runs_of_others_that_have_nothing_to_do_with_a_stage_stay_open():
    run_id = running({}, minutes_ago=10_000)
    close()
    assert status(run_id) == "RUNNING"


@pytest.mark.parametrize(("minutes", "expected"), [(2, "RUNNING"), (30, "KILLED")])
def test_a_run_of_another_machine_is_closed_when_it_has_been_silent_for_long(minutes, expected):
    run_id = running({tracking.PROCESS: ELSEWHERE}, minutes_ago=90)
    at = int(time.time() * 1000 - minutes * MINUTE_MS)
    MlflowClient().log_batch(run_id, metrics=[Metric("system/memory", 1.0, at, 0), Metric("train/loss", 1.0, 0, 0)])
    close()
    assert status(run_id) == expected


def test_a_run_that_mlflow_run_made_and_nobody_took_up_is_closed(monkeypatch):
    run_id = running({abandoned.ENTRY_POINT: "main"})
    monkeypatch.setattr(abandoned, "may_belong_to_one_alive", lambda *_: True)
    close()
    assert status(run_id) == "RUNNING"
    monkeypatch.setattr(abandoned, "may_belong_to_one_alive", lambda *_: False)
    close()
    assert status(run_id) == "KILLED"


def test_a_run_that_starts_closes_what_a_killed_one_left_open():
    parent = running({tracking.PROCESS: DEAD})
    nested = running({tracking.PROCESS: DEAD, "mlflow.parentRunId": parent})
    with tracking.open_run("main", {tracking.STAGE: "main"}, {}) as run_id:
        assert (status(parent), status(nested), status(run_id)) == ("KILLED", "KILLED", "RUNNING")
        with tracking.open_run("resize", {tracking.STAGE: "resize"}, {}) as inner:
            assert MlflowClient().get_run(inner).data.tags[tracking.PROCESS] == identity()
    assert status(run_id) == "FINISHED"
