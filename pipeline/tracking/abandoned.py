"""Runs whose process was killed, or whose machine went away, before it could end them."""

import time

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.system.console import say
from pipeline.system.processes import is_alive, may_belong_to_one_alive
from pipeline.tracking.names import PROCESS, REASON

ENTRY_POINT = "mlflow.project.entryPoint"
# System metrics come every ten seconds; a machine that has been silent for so long is taken to be gone. Should it
# come back, its process ends its runs itself, and what it says counts.
SILENT_SECONDS = 600.0
LONGEST_START_SECONDS = 3600.0


def close_abandoned(own_run_id: str) -> None:
    """End, as KILLED, every run beside `own_run_id` that is RUNNING and that no process works on any more."""
    client = MlflowClient()
    experiment_id = client.get_run(own_run_id).info.experiment_id
    abandoned = [
        run
        for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000)
        if _is_abandoned(client, run)
    ]
    for run in abandoned:
        client.set_tag(run.info.run_id, REASON, "its process ended without a word: killed, or its machine went away")
        client.set_terminated(run.info.run_id, "KILLED")
    if abandoned:
        say(f"closed {len(abandoned)} run(s) that a process had left open when it was killed")


def _is_abandoned(client: MlflowClient, run: Run) -> bool:
    started_seconds = float(run.info.start_time) / 1000
    age_seconds = time.time() - started_seconds
    process = run.data.tags.get(PROCESS)
    if process is not None:
        alive = is_alive(process)
        if alive is not None:
            return not alive
        return min(age_seconds, _silent_seconds(client, run)) > SILENT_SECONDS
    if ENTRY_POINT not in run.data.tags:
        return False
    if mlflow.get_tracking_uri().startswith("sqlite:"):  # one machine's own
        return not may_belong_to_one_alive(run.info.run_id, started_seconds)
    return age_seconds > LONGEST_START_SECONDS


def _silent_seconds(client: MlflowClient, run: Run) -> float:
    """How long ago the run's system metrics came last."""
    names = [name for name in run.data.metrics if name.startswith("system/")]
    times = [int(point.timestamp) for name in names[:1] for point in client.get_metric_history(run.info.run_id, name)]
    return time.time() - max(times, default=int(run.info.start_time)) / 1000
