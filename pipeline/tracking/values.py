"""Tags, params and metrics of a run."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import pandas as pd
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.system.errors import UserError
from pipeline.tracking.experiments import find_run
from pipeline.tracking.names import ADVICE, DESCRIPTION, EVALUATED_ON, REASON, REUSED, STAGE
from pipeline.tracking.outbox import METRICS_PER_CALL, PARAMS_PER_CALL, TAGS_PER_CALL
from pipeline.tracking.sender import call_server, enqueue, flush, sending
from pipeline.tracking.server import Unreachable

LONGEST_TAG, LONGEST_PARAM = 5000, 6000
RUN_NAME = "mlflow.runName"
MADE_UP = re.compile(r"[a-z]+-[a-z]+-\d+")
Point = tuple[str, float, int, int]  # name, value, time in milliseconds, step


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags, cut to the length that the server takes."""
    items = [(key, value[:LONGEST_TAG]) for key, value in tags.items()]
    for start in range(0, len(items), TAGS_PER_CALL):
        enqueue(run_id, "values", {"tags": dict(items[start : start + TAGS_PER_CALL])})


def tag_reason(run_id: str, reason: str) -> None:
    """Show on the page of a run why it ended; if the server is away, the reason is left in the outbox."""
    with sending(run_id) as sender, suppress(Unreachable):
        sender.enqueue(run_id, "values", {"tags": {REASON: reason[:LONGEST_TAG]}})
        sender.flush(0.0)


def log_metrics(run_id: str, metrics: Mapping[str, float], step: int) -> None:
    """One value of each metric at `step`."""
    log_points(run_id, [(name, value, step) for name, value in metrics.items()])


def log_points(run_id: str, points: Iterable[tuple[str, float, int]]) -> None:
    """Many (name, value, step), all with the time of this call."""
    now = int(time.time() * 1000)
    _log_all(run_id, [(name, float(value), now, int(step)) for name, value, step in points])


def copy_curves(source_run_id: str, target_run_id: str, prefixes: Sequence[str]) -> None:
    """Copy every point of the source's metrics whose names start with one of `prefixes` to the target."""
    flush(source_run_id)
    _log_all(target_run_id, call_server(lambda: _curves(source_run_id, prefixes)))


def describe_run(run_id: str, markdown: str) -> None:
    """The text at the top of the run's page."""
    set_tags(run_id, {DESCRIPTION: markdown})


def add_to_description(run_id: str, markdown: str) -> None:
    """A further paragraph at the top of the run's page."""
    flush(run_id)
    before = call_server(lambda: MlflowClient().get_run(run_id)).data.tags.get(DESCRIPTION, "")
    describe_run(run_id, f"{before}\n\n{markdown}".strip())


def name_run(run_id: str, name: str) -> None:
    """Give the run a name, unless the user has given it one."""
    flush(run_id)
    if is_made_up(call_server(lambda: MlflowClient().get_run(run_id))):
        set_tags(run_id, {RUN_NAME: name})


def is_made_up(run: Run) -> bool:
    """Whether a run has no name but its stage's or one that MLflow made up."""
    return run.info.run_name == run.data.tags.get(STAGE) or MADE_UP.fullmatch(run.info.run_name) is not None


def rename_run(run_id: str, name: str) -> None:
    """Give the run another name, even if the user has given it one."""
    set_tags(run_id, {RUN_NAME: name})


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Log params that the run does not have yet: those that `mlflow run` logged, as they were typed, cannot change."""
    there = call_server(lambda: MlflowClient().get_run(run_id)).data.params
    new = [(name, format_param(value)) for name, value in params.items() if name not in there]
    for start in range(0, len(new), PARAMS_PER_CALL):
        enqueue(run_id, "values", {"params": dict(new[start : start + PARAMS_PER_CALL])})


def read_params(run_id: str) -> dict[str, str]:
    """The params of a run, as text."""
    return dict(call_server(lambda: MlflowClient().get_run(run_id)).data.params)


def format_param(value: object) -> str:
    """A param as text: lists without brackets and quotes, which the run's page would break at each item; cut to
    the length that the server takes."""
    text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    return text[:LONGEST_PARAM]


def _curves(run_id: str, prefixes: Sequence[str]) -> list[Point]:
    client = MlflowClient()
    names = [name for name in client.get_run(run_id).data.metrics if name.startswith(tuple(prefixes))]
    points = [point for name in names for point in client.get_metric_history(run_id, name)]
    return [(point.key, point.value, point.timestamp, point.step) for point in points]


def _log_all(run_id: str, points: Sequence[Point]) -> None:
    for start in range(0, len(points), METRICS_PER_CALL):
        enqueue(run_id, "values", {"metrics": points[start : start + METRICS_PER_CALL]})


def evaluation_of(run_id: str) -> tuple[str, str]:
    """(run id, run name) of the evaluate run of a run of main, or of an evaluate run itself; the name is the one of
    `run_id`. UserError for any other run."""
    run = find_run(run_id)
    if run is None:
        raise UserError(f"There is no run {run_id} on the tracking server; copy the ids from the runs' pages.")
    tags = run.data.tags
    if REUSED in tags:
        return evaluation_of(tags[REUSED])
    if tags.get(STAGE) == "evaluate":
        return run_id, str(run.info.run_name)
    if f"{STAGE}.evaluate" in tags:
        return tags[f"{STAGE}.evaluate"], str(run.info.run_name)
    what = f"is a run of {tags[STAGE]}" if STAGE in tags else "is of no stage"
    raise UserError(f"Run {run_id} {what} that was not evaluated; give ids of finished runs of main or evaluate.")


def evaluated_on(run_id: str) -> str:
    """The split that an evaluate run evaluated its model on."""
    return str(MlflowClient().get_run(run_id).data.tags[EVALUATED_ON])


def advice_of(run_id: str) -> str:
    """What an evaluate run found most wrong, and the command to try next; empty if it found nothing."""
    flush(run_id)
    return call_server(lambda: MlflowClient().get_run(run_id)).data.tags.get(ADVICE, "")


def read_curve(run_ids: Sequence[str], metric: str) -> pd.DataFrame:
    """`step` and `value` of a metric over several runs, one after the other, by step."""
    client = MlflowClient()
    points = {
        point.step: point.value
        for run_id in run_ids
        if metric in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, metric)
    }
    return pd.DataFrame(sorted(points.items()), columns=["step", "value"])
