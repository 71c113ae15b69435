"""All that is said to the tracking server: runs, metrics, artifacts, models. Nothing else imports mlflow, but the
served model's own file."""

import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from pipeline.contract import RunRef, Stage
from pipeline.errors import UserError
from pipeline.store import open_or_build

STAGE = "thaw.stage"
FINGERPRINT = "thaw.fingerprint"
UPSTREAM = "thaw.upstream"
DONE = "thaw.done"
REUSED = "thaw.reused"
REASON = "thaw.reason"
SECONDS = "stage/seconds"
DESCRIPTION = "mlflow.note.content"
VERDICT = "thaw.verdict"
EVALUATED_ON = "thaw.evaluated_on"
MODEL = "thaw.model"
SHOWN = (DESCRIPTION, VERDICT, EVALUATED_ON, MODEL)

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
LONGEST_TAG = 5000


@contextmanager
def open_run(name: str, tags: Mapping[str, str], params: Mapping[str, object]) -> Iterator[str]:
    """The id of a run that is open within the block: the one that `mlflow run` made, where it made one, else a new
    one, nested if another is open.

    It ends as FINISHED; as KILLED by Ctrl-C or SIGTERM; as FAILED, with the reason as a tag, by any error.
    """
    # Taken out of the environment, so that a run opened within this one does not adopt it once more.
    handed = os.environ.pop("MLFLOW_RUN_ID", None) if mlflow.active_run() is None else None
    try:
        run = mlflow.start_run(
            run_id=handed,
            run_name=None if handed else name,
            nested=mlflow.active_run() is not None,
            log_system_metrics=True,
        )
    except MlflowException as error:
        raise _no_run(error) from None
    run_id: str = run.info.run_id
    try:
        _log_params(run_id, params)
        set_tags(run_id, tags)
        yield run_id
    except KeyboardInterrupt:
        _end(run_id, "KILLED", "stopped by Ctrl-C or SIGTERM")
        raise
    except BaseException as error:
        _end(run_id, "FAILED", str(error) or type(error).__name__)
        raise
    mlflow.end_run()


def _end(run_id: str, status: str, reason: str) -> None:
    try_tag(run_id, reason)
    mlflow.end_run(status)


def _no_run(error: MlflowException) -> UserError:
    return UserError(
        f"The tracking server at {mlflow.get_tracking_uri()} gives no run ({_first_line(error)}); "
        "check MLFLOW_TRACKING_URI, which has to be absolute if the project lies in another folder."
    )


def run_of(run_id: str) -> RunRef:
    """The stage run with this id, or the one that was reused in its stead; UserError if there is no such run."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException:
        raise UserError(
            f"There is no run {run_id} on the tracking server at {mlflow.get_tracking_uri()}; copy the id of an "
            "upstream run from its page."
        ) from None
    tags = run.data.tags
    if REUSED in tags:
        return run_of(tags[REUSED])
    if STAGE not in tags:
        raise UserError(f"The run {run_id} is no run of a stage; give the id of one of its nested runs.")
    if DONE not in tags and tags[STAGE] != "main":
        raise UserError(f"The run {run_id} of {tags[STAGE]} did not finish ({run.info.status}); run it again first.")
    return _as_ref(run, reused=False)


def find_done(fingerprint: str, stage: Stage, within: str | None = None) -> RunRef | None:
    """The latest FINISHED run with this fingerprint that was marked done and still has its artifacts; with
    `within`, only that run or one nested in it."""
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{DONE}` = 'true' and attributes.status = 'FINISHED'"
    client = MlflowClient()
    experiment_id = _experiment_id()
    if experiment_id is None:
        return None
    for run in client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"], max_results=50):
        nested_in = run.data.tags.get("mlflow.parentRunId")
        if within is not None and within not in (run.info.run_id, nested_in):
            continue
        there = {item.path for item in client.list_artifacts(run.info.run_id)}
        if there.issuperset(stage.artifacts):
            return _as_ref(run, reused=True)
    return None


def mark_done(run_id: str, seconds: float) -> RunRef:
    """The last act of a stage's run: from now on it may be taken instead of running the stage again."""
    log_metrics(run_id, {SECONDS: seconds}, step=0)
    set_tags(run_id, {DONE: "true"})
    return _as_ref(MlflowClient().get_run(run_id), reused=False)


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


def show_result(source_run_id: str, target_run_id: str, artifacts: Sequence[str]) -> None:
    """Let the target's page show what the source's does: its description, verdict, model and pictures, and
    `artifacts`, files of its own."""
    client = MlflowClient()
    source = client.get_run(source_run_id)
    shown = {name: value for name, value in source.data.tags.items() if name in SHOWN}
    set_tags(target_run_id, shown)
    if source.inputs is not None:
        client.log_inputs(target_run_id, datasets=source.inputs.dataset_inputs)
    for place in artifacts:
        client.log_artifact(target_run_id, str(artifact(source_run_id, place)))


def log_folder(run_id: str, folder: Path, place: str | None = None) -> None:
    """Keep all files of `folder` as artifacts, below `place`."""
    MlflowClient().log_artifacts(run_id, str(folder), place)


def log_text(run_id: str, text: str, place: str) -> None:
    """Keep `text` as the artifact file `place`."""
    MlflowClient().log_text(run_id, text, place)


def artifact(run_id: str, place: str) -> Path:
    """A local copy of a finished run's artifact file or folder `place`; UserError if it is gone.

    Artifacts on this machine are read where they lie; others are fetched once and kept in the cache.
    """
    local = _local_path(run_id)
    if local is not None and (local / place).exists():
        return local / place

    def fetch(folder: Path) -> None:
        try:
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=place, dst_path=str(folder))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"The artifact {place} of run {run_id} cannot be had ({_first_line(error)}); run that stage again."
            ) from None

    return open_or_build("artifacts", {"run_id": run_id, "place": place}, fetch)[0] / place


def _local_path(run_id: str) -> Path | None:
    """Where the run's artifacts lie, if they lie on this machine."""
    uri = MlflowClient().get_run(run_id).info.artifact_uri
    return Path(local_file_uri_to_path(uri)) if is_local_uri(uri) else None  # type: ignore[no-untyped-call]


def log_dataset(name: str, place: Path, digest: str, context: str) -> None:
    """Name the pictures, by content digest, as the open run's input."""
    with warnings.catch_warnings(action="ignore"):  # a local folder is two of mlflow's kinds of source, alike
        source = resolve_dataset_source(str(place))
    dataset = MetaDataset(source=source, name=name, digest=digest[:36])  # type: ignore[abstract]
    mlflow.log_input(dataset, context=context)


def log_classifier(
    model_file: Path,
    checkpoint: Path,
    requirements: Sequence[str],
    classes: Sequence[str],
    register_as: str,
    metrics: Mapping[str, float],
    step: int,
) -> str | None:
    """Log the model in the open run, from its file and its checkpoint (no pickle), and register it.

    Gives the version, or None where `register_as` is empty. `metrics` at `step` are logged on the run, linked to the
    model.
    """
    numbers = ["confidence", *(f"probability/{label}" for label in classes)]
    outputs: list[ColSpec | TensorSpec] = [ColSpec("string", "label"), *(ColSpec("double", name) for name in numbers)]
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=str(model_file),
        code_paths=[str(model_file.parent)],
        artifacts={"checkpoint": str(checkpoint)},
        pip_requirements=list(requirements),
        signature=ModelSignature(Schema([ColSpec("binary", "image")]), Schema(outputs)),
        registered_model_name=register_as or None,
    )
    mlflow.log_metrics(dict(metrics), step=step, model_id=info.model_id)
    return str(info.registered_model_version) if register_as else None


def is_open() -> bool:
    """Whether a run is open in this process."""
    return mlflow.active_run() is not None


def try_tag(run_id: str, reason: str) -> None:
    """Say on the page of a run why it ended, if its server can be reached."""
    try:
        set_tags(run_id, {REASON: reason})
    except MlflowException:
        return


def describe_run(run_id: str, markdown: str) -> None:
    """The text at the top of the run's page."""
    set_tags(run_id, {DESCRIPTION: markdown})


def _log_all(run_id: str, metrics: Sequence[Metric]) -> None:
    client = MlflowClient()
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])


def _log_params(run_id: str, params: Mapping[str, object]) -> None:
    """Params cannot be changed: those that `mlflow run` has logged, as they were typed, stay as they are."""
    client = MlflowClient()
    there = client.get_run(run_id).data.params
    new = [Param(name, str(value)) for name, value in params.items() if name not in there]
    for start in range(0, len(new), PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + PARAMS_PER_CALL])


def _experiment_id() -> str | None:
    """The experiment of the open run, else of the run handed over, else the one that a new run would go to, if it is
    there already."""
    active = mlflow.active_run()
    if active is not None:
        return str(active.info.experiment_id)
    handed = os.environ.get("MLFLOW_RUN_ID")
    client = MlflowClient()
    if handed:
        try:
            return str(client.get_run(handed).info.experiment_id)
        except MlflowException as error:
            raise _no_run(error) from None
    if os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return os.environ["MLFLOW_EXPERIMENT_ID"]
    experiment = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default"))
    return str(experiment.experiment_id) if experiment is not None else None


def _as_ref(run: Run, reused: bool) -> RunRef:
    tags: dict[str, Any] = run.data.tags
    return RunRef(
        run_id=run.info.run_id,
        stage=tags[STAGE],
        fingerprint=tags.get(FINGERPRINT, ""),
        upstream=tags.get(UPSTREAM),
        metrics=dict(run.data.metrics),
        seconds=run.data.metrics.get(SECONDS, 0.0),
        reused=reused,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
