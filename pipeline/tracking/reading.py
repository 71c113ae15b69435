"""What finished runs hold, read to be shown side by side."""

from collections.abc import Sequence

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.errors import UserError
from pipeline.tracking.names import EVALUATED_ON, STAGE
from pipeline.tracking.sender import ask


def evaluation_of(run_id: str) -> tuple[str, str]:
    """(run id, run name) of the evaluate run of a run of main, or of an evaluate run itself; the name is the one of
    `run_id`. UserError for any other run."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException:
        raise UserError(
            f"There is no run {run_id} on the tracking server; copy the ids from the runs' pages."
        ) from None
    tags = run.data.tags
    if tags.get(STAGE) == "evaluate":
        return run_id, str(run.info.run_name)
    if f"{STAGE}.evaluate" in tags:
        return tags[f"{STAGE}.evaluate"], str(run.info.run_name)
    what = f"is a run of {tags[STAGE]}" if STAGE in tags else "is of no stage"
    raise UserError(f"Run {run_id} {what} that was not evaluated; give ids of finished runs of main or evaluate.")


def evaluated_on(run_id: str) -> str:
    """The split that an evaluate run judged its model on."""
    return str(MlflowClient().get_run(run_id).data.tags[EVALUATED_ON])


def read_curve(run_ids: Sequence[str], metric: str) -> pd.DataFrame:
    """`step` and `value` of a metric over several runs that followed one another, by step."""
    client = MlflowClient()
    points = {
        point.step: point.value
        for run_id in run_ids
        if metric in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, metric)
    }
    return pd.DataFrame(sorted(points.items()), columns=["step", "value"])


def pages_beside(run_id: str, others: Sequence[str]) -> list[str]:
    """Where the pages of runs of the same experiment are, as links on the page of `run_id`."""
    experiment_id = ask(lambda: MlflowClient().get_run(run_id)).info.experiment_id
    return [f"#/experiments/{experiment_id}/runs/{other}" for other in others]
