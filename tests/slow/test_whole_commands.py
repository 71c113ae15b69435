"""What a user counts on: four at once, a cache that is gone, another machine, a full disk, a rate that is absurd."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import mlflow
import pytest
from mlflow_server import MlflowServer

from tests.workplace import PROJECT, Workplace, copy_cells

pytestmark = pytest.mark.slow

STAGES = ["precompute", "lr_find", "train_head", "lr_find", "fine_tune", "resize", "evaluate"]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    made = Workplace(tmp_path)
    copy_cells(made.pictures, 32)
    return made


def command(place: Workplace, stage: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "stages", stage, *arguments], cwd=PROJECT, env=place.environment() | variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def smoke(place: Workplace, **variables: str) -> "subprocess.Popen[str]":
    return command(place, "main", "--recipe", "recipes/smoke.yaml", "--data", str(place.pictures), **variables)


def output_of(process: "subprocess.Popen[str]", code: int = 0) -> str:
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == code, printed
    return printed


def weights_of(run: mlflow.entities.Run) -> str:
    return sha256((Path(run.info.artifact_uri) / "checkpoint" / "network.safetensors").read_bytes()).hexdigest()


def test_four_that_start_at_once_build_each_store_once_and_all_end_right(place):
    variables = {"MLFLOW_ARTIFACT_ROOT": str(place.folder), "OMP_NUM_THREADS": "1"}
    printed = [output_of(process) for process in [smoke(place, **variables) for _ in range(4)]]
    runs = place.runs()
    assert {run.info.status for run in runs} == {"FINISHED"}
    done = Counter(run.data.tags["thaw.stage"] for run in runs if "thaw.done" in run.data.tags)
    assert done == Counter({"main": 4, **Counter(STAGES)})
    parents = [run for run in runs if run.data.tags["thaw.stage"] == "main"]
    assert len({run.data.metrics["test/accuracy"] for run in parents}) == 1
    assert sum(text.count("reused run") for text in printed) == 3 * len(STAGES)
    for kind in ("pixels", "activations"):
        for store in (path for path in (place.folder / "cache" / kind).iterdir() if path.is_dir()):
            assert not store.name.startswith("."), "half-built"


def test_the_late_group_is_trained_on_what_is_stored_in_front_of_it(place):
    cut = ["--precompute.cut", "late", "--train_head.freeze", "early", "--precompute.views", "1"]
    start = ["main", "--recipe", "recipes/smoke.yaml", "--data", str(place.pictures)]
    output_of(command(place, *start))
    printed = output_of(command(place, *start, *cut))
    assert printed.count("reused run") == 0
    assert output_of(command(place, *start, *cut)).count("reused run") == len(STAGES)
    (head,) = place.runs(stage="train_head", done="true")[1:]
    assert head.data.metrics["top_rate_late"] == pytest.approx(head.data.metrics["top_rate_head"] / 3)
    assert {key for key in head.data.metrics if key.startswith("rate_")} == {"rate_late", "rate_head"}
    before, after = (Path(run.info.artifact_uri) for run in place.runs(stage="evaluate", done="true"))
    twins = [(folder / "near_duplicates.csv").read_text().count("\n") for folder in (before, after)]
    assert twins[0] == twins[1], "what is alike is seen by the same activations"
    printed = output_of(command(place, *start, *cut, "--data.max_store_gib", "0.0001", "--reuse", "never"), code=2)
    assert "more than data.max_store_gib = 0.0001 allows; raise it" in printed


def test_the_weights_of_a_table_are_trained_with_in_every_stage(place):
    names = sorted(path.relative_to(place.folder) for path in place.pictures.rglob("*.png"))
    for weights in ("1", "3"), ("1", "30"):
        rows = [f"{name},{name.parent.name},{weights[name.parent.name == 'functional']}" for name in names]
        (place.folder / "cells.csv").write_text("\n".join(["path,label,weight", *rows]))
        output_of(
            command(
                place, "main", "--recipe", "recipes/smoke.yaml", "--data", str(place.folder / "cells.csv"),
            )
        )  # fmt: skip
    for stage in STAGES[:-1]:
        assert len(place.runs(stage=stage, done="true")) == (4 if stage == "lr_find" else 2)
    heads = place.runs(stage="train_head", done="true")
    assert heads[0].data.metrics["valid/loss"] != heads[1].data.metrics["valid/loss"]


def test_a_later_stage_runs_where_the_cache_is_gone(place):
    output_of(smoke(place))
    shutil.rmtree(place.folder / "cache")
    upstream = place.runs(stage="lr_find")[-1].info.run_id
    printed = output_of(
        command(place, "fine_tune", "--upstream", upstream, "--fine_tune.weight_decay", "0.02", "--reuse", "never")
    )
    assert "decoding" not in printed, "the pixels were among the files of precompute's run"
    assert "fine_tune: done" in printed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.stop(signal.SIGKILL)


def test_a_later_stage_runs_on_another_machine_that_shares_the_tracking_server_alone(place, server):
    output_of(smoke(place, MLFLOW_TRACKING_URI=server.uri))
    shutil.rmtree(place.folder / "cache")
    shutil.rmtree(place.pictures)
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("cells")
    found = client.search_runs([experiment.experiment_id], "tags.`thaw.stage` = 'resize'")
    printed = output_of(
        command(
            place, "evaluate", "--upstream", found[0].info.run_id, "--reuse", "never", MLFLOW_TRACKING_URI=server.uri
        )
    )
    assert "evaluate: done" in printed


def test_a_rate_that_is_absurd_stops_the_stage_and_keeps_the_last_good_checkpoint(place):
    output_of(smoke(place))
    upstream = place.runs(stage="lr_find")[-1].info.run_id
    printed = output_of(
        command(
            place, "fine_tune", "--upstream", upstream, "--fine_tune.lr", "999", "--fine_tune.cycles", "8",
            "--fine_tune.warm_up", "0",
        ),
        code=2,
    )  # fmt: skip
    assert "at step" in printed
    assert "lower the stage's lr" in printed
    assert "Traceback" not in printed
    failed = place.runs(stage="fine_tune")[-1]
    assert failed.info.status == "FAILED"
    assert "lower the stage's lr" in failed.data.tags["thaw.reason"]
    for kept in (place.folder / "cache" / "checkpoints").glob("*/0*/progress.json"):
        assert json.loads(kept.read_text())["run_id"] == failed.info.run_id


@pytest.mark.parametrize("kib", [300, 1500, 6000, 20000])
def test_on_a_full_disk_a_sentence_is_told_and_a_rerun_with_space_goes_on(place, kib):
    disk = place.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: it takes root")
    try:
        printed = output_of(smoke(place, THAW_CACHE=str(disk / "cache")), code=2)
        assert "No space left on the disk" in printed
        assert "Traceback" not in printed
        left = [path.name for path in disk.rglob("*") if "building" in path.name]
        assert not left, "half-written"
        assert not [run for run in place.runs() if run.info.status == "RUNNING"]
        subprocess.run(["mount", "-o", "remount,size=2g", str(disk)], check=True)
        assert "What was done" in output_of(smoke(place, THAW_CACHE=str(disk / "cache")))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_and_sigterm_end_a_run_as_killed_and_the_same_command_goes_on(place, processes):
    words = [
        "-P", "recipe=recipes/smoke.yaml", "-P", f"data={place.pictures}", "-P", "fine_tune.cycles=6", "-P",
        f"processes={processes}",
    ]  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            ["mlflow", "run", ".", "--env-manager", "local", *words],
            cwd=PROJECT, env=place.environment() | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stdout is not None
        for awaited in ("fine_tune: started", "images/s"):
            assert any(awaited in line for line in process.stdout)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)  # as a scheduler does
        process.communicate(timeout=60)
        assert process.returncode != 0
        statuses = {run.data.tags["thaw.stage"]: run.info.status for run in place.runs()}
        assert statuses["main"] == "KILLED"
        assert "RUNNING" not in statuses.values()
    assert "resumed after" in place.mlflow_run(*words)
