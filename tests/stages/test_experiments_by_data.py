"""`mlflow run` without a named experiment: runs lie in the experiment of their data, and Default points to them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.stages.conftest import PROJECT, Workplace, copy_cells

pytestmark = pytest.mark.slow

ENTRY_POINT = "mlflow.project.entryPoint"


class Unnamed(Workplace):
    """A workplace whose user names no experiment."""

    def environment(self) -> dict[str, str]:
        unset = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
        return {name: value for name, value in super().environment().items() if name not in unset}

    def runs_in(self, experiment: str) -> list[Run]:
        """Oldest first."""
        found = self.client.get_experiment_by_name(experiment)
        return self.client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []

    def precompute(self, *arguments: str, expect: int = 0) -> str:
        return self.mlflow_run(
            "-e", "precompute", "-P", "recipe=recipes/smoke.yaml", "-P", f"data={self.pictures}", *arguments,
            expect=expect,
        )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Unnamed:
    place = Unnamed(tmp_path_factory.mktemp("unnamed"))
    copy_cells(place.pictures, 8)
    (place.folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    # Otherwise its artifacts would lie in the project's folder.
    place.client.create_experiment("thaw-cells", artifact_location=str(place.folder / "artifacts"))
    return place


@pytest.fixture(scope="module")
def done(place: Unnamed) -> Unnamed:
    place.precompute()
    return place


def test_the_run_lies_in_the_experiment_of_its_data_and_the_run_of_mlflow_run_points_to_it(done):
    (run,), (pointer,) = done.runs_in("thaw-cells"), done.runs_in("Default")
    assert (run.info.status, pointer.info.status) == ("FINISHED", "FINISHED")
    assert run.data.tags["thaw.stage"] == pointer.data.tags["thaw.stage"] == "precompute"
    assert run.data.tags["thaw.done"] == "true"
    assert run.data.tags[ENTRY_POINT] == pointer.data.tags[ENTRY_POINT] == "precompute"
    assert run.data.params["data"] == str(done.pictures)
    assert pointer.data.tags["thaw.reused"] == run.info.run_id
    assert f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in pointer.data.tags["mlflow.note.content"]
    assert pointer.info.run_name == "precompute"


def test_a_second_run_is_reused_from_there_and_a_later_stage_follows_the_id_that_mlflow_run_printed(done):
    before = len(done.runs_in("thaw-cells"))
    (first,) = [run.info.run_id for run in done.runs_in("thaw-cells") if run.data.tags["thaw.stage"] == "precompute"]
    assert f"reused run {first}" in done.precompute()
    assert len(done.runs_in("thaw-cells")) == before
    pointer = done.runs_in("Default")[-1]
    assert (pointer.info.status, pointer.data.tags["thaw.reused"]) == ("FINISHED", first)
    done.mlflow_run("-e", "lr_find", "-P", f"upstream={pointer.info.run_id}")
    found = done.runs_in("thaw-cells")[-1]
    assert (found.data.tags["thaw.stage"], found.data.tags["thaw.upstream"]) == ("lr_find", first)
    assert done.runs_in("Default")[-1].data.tags["thaw.reused"] == found.info.run_id


def test_a_mistake_is_the_reason_of_the_run_of_mlflow_run_and_leaves_no_other(done):
    before = len(done.runs_in("thaw-cells"))
    done.precompute("-P", "precompute.image_pxx=8", expect=2)
    failed = done.runs_in("Default")[-1]
    assert failed.info.status == "FAILED"
    assert "image_pxx" in failed.data.tags["thaw.reason"]
    assert len(done.runs_in("thaw-cells")) == before


def start(place: Unnamed, log: Path, image_px: int) -> "subprocess.Popen[bytes]":
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
    while not (running(place, "thaw-cells") and "thaw.reused" in place.runs_in("Default")[-1].data.tags):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return process


def running(place: Unnamed, experiment: str) -> list[Run]:
    return [run for run in place.runs_in(experiment) if run.info.status == "RUNNING"]


def test_ctrl_c_ends_both_as_killed(done, tmp_path):
    process = start(done, tmp_path / "log.txt", 224)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(60)
    run, pointer = done.runs_in("thaw-cells")[-1], done.runs_in("Default")[-1]
    assert pointer.data.tags["thaw.reused"] == run.info.run_id
    for one in (run, pointer):
        assert (one.info.status, one.data.tags["thaw.reason"]) == ("KILLED", "stopped by Ctrl-C or SIGTERM")


def test_a_kill_leaves_both_open_until_the_next_command_closes_them(done, tmp_path):
    process = start(done, tmp_path / "log.txt", 256)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (run,), (pointer,) = running(done, "thaw-cells"), running(done, "Default")
    done.precompute("-P", "reuse=never")
    for run_id in (run.info.run_id, pointer.info.run_id):
        closed = done.client.get_run(run_id)
        assert closed.info.status == "KILLED"
        assert "killed" in closed.data.tags["thaw.reason"]
    assert not running(done, "thaw-cells")
    assert not running(done, "Default")
