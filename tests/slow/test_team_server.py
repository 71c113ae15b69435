"""A team: MLflow on a real PostgreSQL, which hands artifacts on to S3; and machines that share nothing else."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import mlflow
import pytest
from mlflow_server import MlflowServer

from tests.postgres_server import postgres_server
from tests.s3_server import S3Server, s3_server
from tests.workplace import PROJECT, copy_cells

pytestmark = pytest.mark.slow

RECIPE = ["--recipe", str(PROJECT / "recipes" / "smoke.yaml")]
STAGES = ["precompute", "lr_find", "train_head", "lr_find", "fine_tune", "resize", "evaluate"]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def server(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    with postgres_server(folder / "database") as database:
        server = MlflowServer(folder, database, ("--artifacts-destination", "s3://thaw/team"), s3.variables)
        server.start()
        yield server
        server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def on_machine(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """What a command prints on the machine of this name, which has a working folder and a cache of its own, and knows
    the tracking server's address alone."""

    def run(name: str, *words: str) -> str:
        folder = tmp_path_factory.getbasetemp() / name
        folder.mkdir(exist_ok=True)
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))}
        variables |= {"MLFLOW_TRACKING_URI": server.uri, "THAW_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "2"}
        done = subprocess.run(
            [sys.executable, "-m", "stages", *words], cwd=folder, env=variables | {"PYTHONPATH": str(PROJECT)},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_what_one_machine_has_computed_the_other_goes_on_with(on_machine, server, s3, tmp_path):
    copy_cells(tmp_path / "cells", 16)
    data = ["--data", str(tmp_path / "cells")]
    printed = on_machine("first", "precompute", *RECIPE, *data)
    (precompute,) = re.findall(r"precompute: done in .* \(run (\w+)\)", printed)
    printed = on_machine("second", "main", *RECIPE, *data)
    assert f"precompute: reused run {precompute}" in printed
    assert printed.count("reused run") == 1
    again = on_machine("first", "main", *RECIPE, *data)
    assert [line.partition(":")[0] for line in again.splitlines() if "reused run" in line] == STAGES

    client = mlflow.MlflowClient(server.uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "thaw-cells"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    by_stage = {run.data.tags["thaw.stage"]: run for run in runs}
    held = [key for key in s3.names("team/") if by_stage["evaluate"].info.run_id in key]
    assert {"report.html", "predictions.csv"} <= {key.rpartition("/")[2] for key in held}
    results = [run.data.metrics["test/accuracy"] for run in runs if run.data.tags["thaw.stage"] == "main"]
    assert len(results) == 2
    assert results[0] == results[1]
    assert client.search_model_versions("name = 'thaw-smoke'")

    (tmp_path / "cells").rename(tmp_path / "elsewhere")
    printed = on_machine(
        "third", "fine_tune", "--upstream", by_stage["train_head"].info.run_id, "--fine_tune.lr", "1e-3"
    )
    assert "fine_tune: done" in printed, "without the pictures, whose pixels are among the files of precompute"
