import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.system.errors import UserError
from pipeline.tracking.outbox import Entry, Outbox

PROJECT = Path(__file__).parents[3]
OPENS_A_RUN = """
from pipeline import tracking
with tracking.open_run("resize", {tracking.STAGE: "resize"}, {"seed": 0}) as run_id:
    tracking.log_points(run_id, [("train/loss", 0.5, step) for step in range(20)])
    tracking.mark_done(run_id, 1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [None, "farm"], ids=["the default experiment", "one that is made by its name"])
def test_four_processes_that_start_at_once_on_an_empty_database_all_succeed(experiment, tmp_path, cache):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(PROJECT)}
    if experiment is not None:
        environment["MLFLOW_EXPERIMENT_NAME"] = experiment
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENS_A_RUN], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    told = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], told
    client = MlflowClient(uri)
    where = client.get_experiment_by_name(experiment or "Default").experiment_id
    runs = client.search_runs([where])
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert [len(client.get_metric_history(run.info.run_id, "train/loss")) for run in runs] == [20] * 4


def test_what_a_killed_process_had_done_but_not_told_is_sent_at_the_next_start_and_reused(tracking_server):
    run_id = MlflowClient().create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    outbox = Outbox(run_id)
    tags = {tracking.STAGE: "resize", tracking.FINGERPRINT: "f", tracking.DONE: "true"}
    with outbox.lock(tracking_server):
        outbox.write(Entry(1, "text", {"text": "seed: 0", "place": "recipe.yaml"}))
        outbox.write(Entry(2, "values", {"tags": tags}))
        outbox.write(Entry(3, "status", {"status": "FINISHED", "end_time_ms": 3000}))
    found = tracking.find_done("f", ["recipe.yaml"])
    assert found is not None
    assert found.run_id == run_id
    assert not outbox.folder.exists()


def test_what_was_left_for_another_server_or_by_another_machine_stays(tracking_server):
    elsewhere = Outbox("a" * 32)
    with elsewhere.lock("http://127.0.0.1:9"):
        elsewhere.write(Entry(1, "text", {"text": "", "place": "t"}))
    with tracking.open_run("resize", {}, {}):
        pass
    assert len(elsewhere.read()) == 1


def test_an_experiment_that_was_deleted_or_is_not_there_is_reported_by_its_id_too(tracking_server, monkeypatch):
    client = MlflowClient()
    gone = client.create_experiment("gone")
    client.delete_experiment(gone)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", gone)
    restore = rf"The experiment gone was deleted; restore it \(mlflow experiments restore --experiment-id {gone}\)"
    with pytest.raises(UserError, match=restore):
        tracking.connect()
    with pytest.raises(UserError, match=restore):
        tracking.use_experiment("farm")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "777")
    with pytest.raises(UserError, match="has no experiment 777, which MLFLOW_EXPERIMENT_ID names; check MLFLOW_TRACK"):
        tracking.connect()


def test_a_run_of_an_experiment_that_was_deleted_is_reported_before_it_is_followed(tracking_server, monkeypatch):
    client = MlflowClient()
    later = client.create_experiment("later")
    run_id = client.create_run(later).info.run_id
    client.delete_experiment(later)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="The experiment later was deleted; restore it"):
        tracking.use_experiment_of(run_id)


def test_a_database_that_mlflow_cannot_use_is_told_in_a_sentence(tmp_path, empty_database, monkeypatch):
    shutil.copy(empty_database, tmp_path / "newer.db")
    with closing(sqlite3.connect(tmp_path / "newer.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'of a later MLflow'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/newer.db")
    with pytest.raises(UserError, match=r"cannot be used \(.*; mend that, or set MLFLOW_TRACKING_URI to another"):
        tracking.find_done("f", ())
