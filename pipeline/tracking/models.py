"""Data and models as the tracking server knows them: inputs of runs, logged and registered models."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec

from pipeline.tracking.artifacts import artifact
from pipeline.tracking.names import SHOWN
from pipeline.tracking.values import set_tags


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
