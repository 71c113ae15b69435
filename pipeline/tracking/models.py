"""Data and models as the tracking server knows them: inputs of runs, and logged models."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from pipeline.errors import UserError
from pipeline.tracking.artifacts import artifact, log_file
from pipeline.tracking.names import SHOWN, first_line
from pipeline.tracking.sender import ask, flush
from pipeline.tracking.values import set_tags

CHECKPOINT = "checkpoint"


def log_dataset(name: str, place: Path, digest: str, context: str) -> MetaDataset:
    """Name the pictures, by content digest, as the open run's input; gives what `log_classifier` links to."""
    with warnings.catch_warnings(action="ignore"):  # a local folder is two of mlflow's kinds of source, alike
        source = resolve_dataset_source(str(place))
    dataset = MetaDataset(source=source, name=name, digest=digest[:36])  # type: ignore[abstract]
    ask(lambda: mlflow.log_input(dataset, context=context))
    return dataset


def log_classifier(
    model_file: Path,
    checkpoint: Path,
    card: Path,
    requirements: Sequence[str],
    classes: Sequence[str],
    top_k: int,
    example: bytes,
    metrics: Mapping[str, float],
    step: int,
    dataset: MetaDataset,
) -> str:
    """Log the model in the open run, from its file, its checkpoint (no pickle) and its card; gives its URI.

    `example` is an encoded picture. `metrics` at `step` are logged on the run, linked to the model and to `dataset`.
    """
    numbers = ["confidence", *(f"probability/{label}" for label in classes)]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec("string", "label"),
        *(ColSpec("double", name) for name in numbers),
        ColSpec(Array("string"), "top_labels"),
        ColSpec(Array("double"), "top_probabilities"),
    ]
    log_model = partial(
        mlflow.pyfunc.log_model,
        name="model",
        python_model=str(model_file),
        code_paths=[str(model_file.parent)],
        artifacts={CHECKPOINT: str(checkpoint), "card": str(card)},
        pip_requirements=list(requirements),
        signature=ModelSignature(
            Schema([ColSpec("binary", "image")]), Schema(outputs), ParamSchema([ParamSpec("top_k", "long", top_k)])
        ),
        input_example=pd.DataFrame({"image": [example]}),
    )
    info = ask(log_model)
    ask(lambda: mlflow.log_metrics(dict(metrics), step=step, model_id=info.model_id, dataset=dataset))
    return f"models:/{info.model_id}"


def model_checkpoint(model_uri: str) -> Path:
    """The checkpoint folder of a model that `log_classifier` logged, registered or not; UserError if there is none."""
    try:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri))
        flavors = Model.load(folder).flavors
    except (MlflowException, OSError) as error:
        raise UserError(
            f"The model {model_uri} cannot be had ({first_line(error)}); give models:/NAME@champion, "
            "models:/NAME/VERSION or models:/MODEL_ID, as its page says."
        ) from None
    kept = flavors.get("python_function", {}).get("artifacts", {}).get(CHECKPOINT)
    if kept is None:
        raise UserError(
            f"The model {model_uri} is no picture classifier of this project; give one that evaluate logged."
        )
    place: Path = (folder / str(kept["path"])).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise UserError(f"The model {model_uri} names {kept['path']}, outside its folder; do not trust it.")
    return place


def show_result(source_run_id: str, target_run_id: str, artifacts: Sequence[str]) -> None:
    """Let the target's page show what the source's does: its description, verdict, model and pictures, and
    `artifacts`, files of its own."""
    client = MlflowClient()
    flush(source_run_id)
    source = ask(lambda: client.get_run(source_run_id))
    shown = {name: value for name, value in source.data.tags.items() if name in SHOWN}
    set_tags(target_run_id, shown)
    if (inputs := source.inputs) is not None:
        ask(lambda: client.log_inputs(target_run_id, datasets=inputs.dataset_inputs))
    if (outputs := source.outputs) is not None and outputs.model_outputs:
        ask(lambda: client.log_outputs(target_run_id, models=outputs.model_outputs))
    for place in artifacts:
        log_file(target_run_id, artifact(source_run_id, place))
