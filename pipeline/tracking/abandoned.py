"""Closes runs whose process was killed, or whose machine went away, before it could end them."""

import time
from collections.abc import Sequence

import mlflow
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.system.console import say
from pipeline.system.processes import is_alive, may_belong_to_one_alive
from pipeline.tracking.experiments import experiments_beside, find_run
from pipeline.tracking.names import DONE, PROCESS, REASON, REUSED

ENTRY_POINT = "mlflow.project.entryPoint"
# System metrics come every ten seconds; a machine that has been silent for so long is taken to be gone. If it comes
# back, its process ends its runs itself, with the status that counts.
SILENT_SECONDS = 600.0
LONGEST_START_SECONDS = 3600.0


def close_abandoned(own_run_id: str) -> None:
    """End every run beside `own_run_id` that is RUNNING although its process has ended: as FINISHED if it was marked as
    done, which is the last thing that is logged to a run; else as KILLED. A run that points to another ends as that
    did."""
    client = MlflowClient()
    experiments = experiments_beside(client.get_run(own_run_id))
    abandoned = [
        run
        for run in client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
        if _is_abandoned(client, run)
    ]
    for run in sorted(abandoned, key=lambda run: REUSED in run.data.tags):  # last those that point to another
        if REUSED in run.data.tags:
            target = find_run(run.data.tags[REUSED])
            if target is None:
                _end(client, run, "KILLED", "the run that it points to is gone")
            else:
                _end(client, run, target.info.status, target.data.tags.get(REASON))
        else:
            for ended in (run, *_pointers(client, run, experiments)):
                if DONE in run.data.tags:
                    _end(client, ended, "FINISHED", None)
                else:
                    _end(client, ended, "KILLED", "its process was killed, or its machine went away")
    if abandoned:
        say(f"closed {len(abandoned)} run(s) that a process had left open when it was killed")


def _pointers(client: MlflowClient, run: Run, experiments: Sequence[str]) -> list[Run]:
    """The runs of the same process that point to this one; `mlflow run` may have ended them as FAILED."""
    query = f"tags.`{REUSED}` = '{run.info.run_id}' and tags.`{PROCESS}` = '{run.data.tags.get(PROCESS)}'"
    return list(client.search_runs(list(experiments), query))


def _end(client: MlflowClient, run: Run, status: str, reason: str | None) -> None:
    if reason is not None:
        client.set_tag(run.info.run_id, REASON, reason)
    client.set_terminated(run.info.run_id, "KILLED" if status == "RUNNING" else status)


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
