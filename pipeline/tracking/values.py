"""What a run says of itself: tags, params, and metrics by step."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence

from mlflow.tracking import MlflowClient

from pipeline.tracking.names import DESCRIPTION, STAGE
from pipeline.tracking.outbox import METRICS_PER_CALL, PARAMS_PER_CALL, TAGS_PER_CALL
from pipeline.tracking.sender import ask, flush, put

LONGEST_TAG = 5000
RUN_NAME = "mlflow.runName"
MADE_UP = re.compile(r"[a-z]+-[a-z]+-\d+")

Point = tuple[str, float, int, int]  # name, value, time in milliseconds, step


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, cut to the length that the server takes."""
    items = [(key, value[:LONGEST_TAG]) for key, value in tags.items()]
    for start in range(0, len(items), TAGS_PER_CALL):
        put(run_id, "values", {"tags": dict(items[start : start + TAGS_PER_CALL])})


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """One value of each metric at `step`."""
    log_points(run_id, [(name, value, step) for name, value in metrics.items()])


def log_points(run_id: str, points: Iterable[tuple[str, float, int]]) -> None:
    """Many (name, value, step), all with the time of this call."""
    now = int(time.time() * 1000)
    _log_all(run_id, [(name, float(value), now, int(step)) for name, value, step in points])


def copy_curves(source_run_id: str, target_run_id: str, prefixes: Sequence[str]) -> None:
    """Put every point of the source's metrics whose names start with one of `prefixes` into the target too."""
    flush(source_run_id)
    _log_all(target_run_id, ask(lambda: _curves(source_run_id, prefixes)))


def describe_run(run_id: str, markdown: str) -> None:
    """The text at the top of the run's page."""
    set_tags(run_id, {DESCRIPTION: markdown})


def add_to_description(run_id: str, markdown: str) -> None:
    """A further paragraph at the top of the run's page."""
    flush(run_id)
    before = ask(lambda: MlflowClient().get_run(run_id)).data.tags.get(DESCRIPTION, "")
    describe_run(run_id, f"{before}\n\n{markdown}".strip())


def name_run(run_id: str, name: str) -> None:
    """Give the run a name, unless the user has given it one: those that MLflow makes up say nothing."""
    flush(run_id)
    run = ask(lambda: MlflowClient().get_run(run_id))
    if run.info.run_name == run.data.tags.get(STAGE) or MADE_UP.fullmatch(run.info.run_name):
        set_tags(run_id, {RUN_NAME: name})


def rename_run(run_id: str, name: str) -> None:
    """Give the run another name, whoever gave it the one that it has."""
    set_tags(run_id, {RUN_NAME: name})


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Params cannot be changed: those that `mlflow run` has logged, as they were typed, stay as they are."""
    there = ask(lambda: MlflowClient().get_run(run_id)).data.params
    new = [(name, _spell(value)) for name, value in params.items() if name not in there]
    for start in range(0, len(new), PARAMS_PER_CALL):
        put(run_id, "values", {"params": dict(new[start : start + PARAMS_PER_CALL])})


def _spell(value: object) -> str:
    """Lists without brackets and quotes, which the run's page would draw on a line for each item."""
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _curves(run_id: str, prefixes: Sequence[str]) -> list[Point]:
    client = MlflowClient()
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith(tuple(prefixes))]
    points = [point for name in names for point in client.get_metric_history(run_id, name)]
    return [(point.key, point.value, point.timestamp, point.step) for point in points]


def _log_all(run_id: str, points: Sequence[Point]) -> None:
    for start in range(0, len(points), METRICS_PER_CALL):
        put(run_id, "values", {"metrics": points[start : start + METRICS_PER_CALL]})
