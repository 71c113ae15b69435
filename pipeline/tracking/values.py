"""What a run says of itself: tags, params, and metrics by step."""

import time
from collections.abc import Iterable, Mapping, Sequence

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from pipeline.tracking.names import DESCRIPTION

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
LONGEST_TAG = 5000


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, cut to the length that the server takes."""
    entities = [RunTag(key, value[:LONGEST_TAG]) for key, value in tags.items()]
    MlflowClient().log_batch(run_id, tags=entities)


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """One value of each metric at `step`."""
    log_points(run_id, [(name, value, step) for name, value in metrics.items()])


def log_points(run_id: str, points: Iterable[tuple[str, float, int]]) -> None:
    """Many (name, value, step), in as few calls as the server allows."""
    now = int(time.time() * 1000)
    _log_all(run_id, [Metric(name, value, now, step) for name, value, step in points])


def copy_curves(source_run_id: str, target_run_id: str, prefixes: Sequence[str]) -> None:
    """Put every point of the source's metrics whose names start with one of `prefixes` into the target too."""
    client = MlflowClient()
    names = [name for name in client.get_run(source_run_id).data.metrics if name.startswith(tuple(prefixes))]
    _log_all(target_run_id, [point for name in names for point in client.get_metric_history(source_run_id, name)])


def describe_run(run_id: str, markdown: str) -> None:
    """The text at the top of the run's page."""
    set_tags(run_id, {DESCRIPTION: markdown})


def _log_all(run_id: str, metrics: Sequence[Metric]) -> None:
    client = MlflowClient()
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Params cannot be changed: those that `mlflow run` has logged, as they were typed, stay as they are."""
    client = MlflowClient()
    there = client.get_run(run_id).data.params
    new = [Param(name, str(value)) for name, value in params.items() if name not in there]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])
