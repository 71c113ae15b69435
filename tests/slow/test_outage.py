"""A real MLflow server that is stopped and started again while a real stage trains."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import MlflowServer

from pipeline.__main__ import main
from pipeline.tracking.outbox import outbox_folder

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
TRAINS = """
import time
from pipeline import tracking
with tracking.open_run("main", {tracking.STAGE: "main"}, {}) as parent:
    with tracking.open_run("resize", {tracking.STAGE: "resize", tracking.FINGERPRINT: "f"}, {"seed": 0}) as run_id:
        print(run_id, flush=True)
        for epoch in range(EPOCHS):
            tracking.log_points(run_id, [(f"train/{name}", epoch / 8, epoch) for name in "abcd"])
            tracking.log_text(run_id, str(epoch), f"epochs/{epoch}.txt")
            time.sleep(0.1)
        tracking.mark_done(run_id, 1.0)
    tracking.copy_curves(run_id, parent, ["train/"])
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path)
    server.start()
    yield server
    server.stop(signal.SIGKILL)


def start(server: MlflowServer, program: list[str], **more: str) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {"MLFLOW_TRACKING_URI": server.uri, "PYTHONPATH": str(PROJECT), **more}
    return subprocess.Popen(
        [sys.executable, *program],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(server: MlflowServer, epochs: int, **more: str) -> tuple["subprocess.Popen[str]", str]:
    process = start(server, ["-c", TRAINS.replace("EPOCHS", str(epochs))], **more)
    return process, process.stdout.readline().strip()


def steps(server: MlflowServer, run_id: str, name: str) -> list[int]:
    return [point.step for point in MlflowClient(server.uri).get_metric_history(run_id, name)]


def points(client: MlflowClient, run_id: str, name: str) -> list[tuple[int, int, float]]:
    history = client.get_metric_history(run_id, name)
    return sorted((point.step, point.timestamp, point.value) for point in history)


def status(server: MlflowServer, run_id: str) -> str:
    return MlflowClient(server.uri).get_run(run_id).info.status


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_server_that_goes_and_comes_back_twice_misses_nothing_and_doubles_nothing(server, signal_number):
    process, run_id = train(server, epochs=400)
    for _ in range(2):
        time.sleep(3)
        server.stop(signal_number)
        time.sleep(4)
        server.start()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert f"The tracking server at {server.uri} is away (" in err
    client = MlflowClient(server.uri)
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    for run in (run_id, parent):
        assert status(server, run) == "FINISHED"
        assert [steps(server, run, f"train/{name}") for name in "abcd"] == [list(range(400))] * 4
    assert len(client.list_artifacts(run_id, "epochs")) == 400
    assert list(outbox_folder().iterdir()) == []


def test_a_server_that_does_not_come_back_gets_all_of_it_later_by_the_command_that_is_named(server, capsys):
    process, run_id = train(server, epochs=60, THAW_TRACKING_PATIENCE_SECONDS="5")
    time.sleep(2)
    server.stop(signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1  # the error of a program without the command line of a stage
    assert f"when the server is back, send it with {'python -m pipeline tracking send'}." in err
    assert main(["tracking", "send"]) == 2
    server.start()
    assert main(["tracking", "send"]) == 0
    assert f"of run {run_id} to {server.uri}" in capsys.readouterr().out
    assert status(server, run_id) == "FINISHED"
    assert MlflowClient(server.uri).get_run(run_id).data.tags["thaw.done"] == "true"
    assert steps(server, run_id, "train/a") == list(range(60))


def test_what_a_killed_process_had_logged_to_a_server_that_was_away_is_sent_at_the_next_start(server):
    process, run_id = train(server, epochs=1000)
    time.sleep(2)
    server.stop(signal.SIGKILL)
    time.sleep(3)
    process.kill()
    process.communicate()
    kept = len(list(outbox_folder().glob(f"{run_id}/[0-9]*.json")))
    assert kept > 20
    server.start()
    before = len(steps(server, run_id, "train/a"))
    next_one, _ = train(server, epochs=1)
    assert next_one.wait(120) == 0
    sent = steps(server, run_id, "train/a")
    assert sent == list(range(len(sent)))
    assert len(sent) > before
    assert list(outbox_folder().iterdir()) == []


def test_two_senders_at_once_send_each_entry_once(server, capsys):
    process, run_id = train(server, epochs=1000)
    time.sleep(1)
    server.stop(signal.SIGKILL)
    time.sleep(6)
    process.kill()
    process.communicate()
    kept = len(list(outbox_folder().glob("*/[0-9]*.json")))
    server.start()
    senders = [start(server, ["-m", "pipeline", "tracking", "send"]) for _ in range(3)]
    out = "".join(sender.communicate(timeout=120)[0] for sender in senders)
    assert sum(int(number) for number in re.findall(r"Sent (\d+) entries", out)) == kept
    sent = steps(server, run_id, "train/a")
    assert sent == list(range(len(sent)))


def test_a_whole_recipe_goes_on_without_its_server(server, tmp_path):
    """`python -m stages main` with the server killed while a stage trains, and started again in its last third."""
    recipe = ["--recipe", "recipes/smoke.yaml", "--lr_find.iterations", "60", "--seed", "1"]
    process = start(server, ["-m", "stages", "main", *recipe], THAW_CACHE=str(tmp_path / "cache"))
    lines: list[str] = []

    def go_away() -> None:
        server.stop(signal.SIGKILL)
        time.sleep(5)
        server.start()

    outage = None
    for line in process.stdout:
        lines.append(line)
        if "epoch" in line and outage is None:
            outage = threading.Thread(target=go_away)
            outage.start()
    err = process.stderr.read()
    assert process.wait() == 0, err
    assert outage is not None
    outage.join()
    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("thaw-elpv").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run.info.run_id for run in runs if run.data.tags["thaw.stage"] == "main")
    for name in ("train/loss", "valid/loss", "rate_head", "test/accuracy"):
        histories = {run.info.run_id: points(client, run.info.run_id, name) for run in runs}
        whole = histories.pop(parent)
        # What evaluate found is logged anew on the parent run, some time later.
        expected = [(step, value) for history in histories.values() for step, _, value in history]
        assert sorted((step, value) for step, _, value in whole) == sorted(expected)
        assert len(whole) == len(set(whole)) > 0
    assert not list((tmp_path / "cache" / "outbox").iterdir())
