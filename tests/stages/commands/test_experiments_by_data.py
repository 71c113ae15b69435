"""`mlflow run` without a named experiment: runs lie in the experiment of their data, and Default points to them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.workplace import PROJECT, Workplace, copy_cells, new_workplace

pytestmark = pytest.mark.slow

ENTRY_POINT = "mlflow.project.entryPoint"
EXPERIMENT = "thaw-cells"


def run_precompute(place: Workplace, *arguments: str, expect: int = 0) -> str:
    """What it prints, by `mlflow run` on the place's pictures."""
    settings = ["-P", "recipe=recipes/smoke.yaml", "-P", f"data={place.pictures}"]
    return place.mlflow_run("-e", "precompute", *settings, *arguments, expect=expect)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Workplace:
    """Where no experiment is named, once precompute has run; the experiment of its pictures was there before, so that
    artifacts lie in the test's folder."""
    made = new_workplace(tmp_path_factory.mktemp("unnamed"), empty_database, EXPERIMENT)
    copy_cells(made.pictures, 8)
    place = Workplace(made.folder, experiment="")
    run_precompute(place)
    return place


def test_the_run_lies_in_the_experiment_of_its_data_and_the_run_of_mlflow_run_points_to_it(place):
    run, pointer = place.runs(EXPERIMENT)[0], place.runs("Default")[0]
    assert (run.info.status, pointer.info.status) == ("FINISHED", "FINISHED")
    assert run.data.tags["thaw.stage"] == pointer.data.tags["thaw.stage"] == "precompute"
    assert run.data.tags["thaw.done"] == "true"
    assert run.data.tags[ENTRY_POINT] == pointer.data.tags[ENTRY_POINT] == "precompute"
    assert run.data.params["data"] == str(place.pictures)
    assert pointer.data.tags["thaw.reused"] == run.info.run_id
    assert f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in pointer.data.tags["mlflow.note.content"]
    assert pointer.info.run_name == "precompute"


def test_a_second_run_is_reused_from_there_and_a_later_stage_follows_the_id_that_mlflow_run_printed(place):
    before = len(place.runs(EXPERIMENT))
    first = place.runs(EXPERIMENT)[0].info.run_id
    assert f"reused run {first}" in run_precompute(place)
    assert len(place.runs(EXPERIMENT)) == before
    pointer = place.runs("Default")[-1]
    assert (pointer.info.status, pointer.data.tags["thaw.reused"]) == ("FINISHED", first)
    place.mlflow_run("-e", "lr_find", "-P", f"upstream={pointer.info.run_id}")
    found = place.runs(EXPERIMENT)[-1]
    assert (found.data.tags["thaw.stage"], found.data.tags["thaw.upstream"]) == ("lr_find", first)
    assert place.runs("Default")[-1].data.tags["thaw.reused"] == found.info.run_id


def test_a_mistake_is_the_reason_of_the_run_of_mlflow_run_and_leaves_no_other(place):
    before = len(place.runs(EXPERIMENT))
    run_precompute(place, "-P", "precompute.image_pxx=8", expect=2)
    failed = place.runs("Default")[-1]
    assert failed.info.status == "FAILED"
    assert "image_pxx" in failed.data.tags["thaw.reason"]
    assert len(place.runs(EXPERIMENT)) == before


def start(place: Workplace, log: Path, image_px: int) -> "subprocess.Popen[bytes]":
    """`mlflow run` on a size that no store holds, as soon as its own run is open."""
    command = [
        "mlflow", "run", ".", "--env-manager", "local", "-e", "precompute", "-P", "recipe=recipes/smoke.yaml",
        "-P", f"data={place.pictures}", "-P", f"precompute.image_px={image_px}", "-P", "precompute.views=50",
    ]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=place.environment(), stdout=file, stderr=file, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (running(place, EXPERIMENT) and "thaw.reused" in place.runs("Default")[-1].data.tags):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return process


def running(place: Workplace, experiment: str) -> list[Run]:
    return [run for run in place.runs(experiment) if run.info.status == "RUNNING"]


def test_ctrl_c_ends_both_as_killed(place, tmp_path):
    process = start(place, tmp_path / "log.txt", 224)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(60)
    run, pointer = place.runs(EXPERIMENT)[-1], place.runs("Default")[-1]
    assert pointer.data.tags["thaw.reused"] == run.info.run_id
    for one in (run, pointer):
        assert (one.info.status, one.data.tags["thaw.reason"]) == ("KILLED", "stopped by Ctrl-C or SIGTERM")


def test_a_kill_leaves_both_open_until_the_next_command_closes_them(place, tmp_path):
    process = start(place, tmp_path / "log.txt", 256)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (run,), (pointer,) = running(place, EXPERIMENT), running(place, "Default")
    run_precompute(place, "-P", "reuse=never")
    for run_id in (run.info.run_id, pointer.info.run_id):
        closed = place.client.get_run(run_id)
        assert closed.info.status == "KILLED"
        assert "killed" in closed.data.tags["thaw.reason"]
    assert not running(place, EXPERIMENT)
    assert not running(place, "Default")
