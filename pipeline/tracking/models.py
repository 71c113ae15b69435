"""Data sets as inputs of runs, and logged models."""

import base64
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from pipeline.system.errors import UserError
from pipeline.tracking.artifacts import artifact, log_file
from pipeline.tracking.names import CHAMPION_ALIAS, SHOWN, first_line
from pipeline.tracking.sender import call_server, flush
from pipeline.tracking.values import evaluation_of, set_tags

CHECKPOINT = "checkpoint"
RUN_ID = re.compile(r"[0-9a-f]{32}")


def log_dataset(name: str, source: str | Path, digest: str, context: str) -> MetaDataset:
    """Log the pictures, by content digest, as the open run's input; gives the data set for `log_classifier`. They come
    from `source`, a folder or an address."""
    with warnings.catch_warnings(action="ignore"):  # a local folder fits two of MLflow's kinds of source
        try:
            resolved = resolve_dataset_source(str(source))
        except MlflowException:  # an address of a kind that it does not know
            resolved = CodeDatasetSource({"address": str(source)})
    dataset = MetaDataset(source=resolved, name=name, digest=digest[:36])  # type: ignore[abstract]
    try:
        call_server(lambda: mlflow.log_input(dataset, context=context))
    except MlflowException:  # another command logged the same pictures first, between MLflow's look and its writing
        call_server(lambda: mlflow.log_input(dataset, context=context))
    return dataset


@dataclass(frozen=True)
class ModelFiles:
    """What a logged model consists of: the file that MLflow runs to load it, in the package that it imports; the
    checkpoint (no pickle); its card; and the `requirements` that it needs, pinned."""

    loader: Path
    checkpoint: Path
    card: Path
    requirements: Sequence[str]


def log_classifier(
    files: ModelFiles,
    classes: Sequence[str],
    top_k: int,
    example: bytes,
    metrics: Mapping[str, float],
    step: int,
    dataset: MetaDataset,
) -> str:
    """Log the model in the open run; gives its URI.

    `example` is an encoded picture. `metrics` at `step` are logged on the run, linked to the model and to `dataset`.
    """
    numbers = ["confidence", *(f"probability/{label}" for label in classes)]
    outputs: list[ColSpec | TensorSpec] = [ColSpec("string", "label"), *(ColSpec("double", name) for name in numbers)]
    outputs += [ColSpec(Array("string"), "top_labels"), ColSpec(Array("double"), "top_probabilities")]
    # The column is of text: a binary one MLflow's server would decode itself, and refuse or garble data URLs, URL-safe
    # and unpadded base64, which the model takes.
    log_model = partial(
        mlflow.pyfunc.log_model,
        name="model",
        python_model=str(files.loader),
        code_paths=[str(files.loader.parent)],
        artifacts={CHECKPOINT: str(files.checkpoint), "card": str(files.card)},
        pip_requirements=list(files.requirements),
        signature=ModelSignature(
            Schema([ColSpec("string", "image")]),
            Schema(outputs),
            ParamSchema([ParamSpec("top_k", "long", top_k), ParamSpec("tta", "boolean", False)]),
        ),
        input_example=pd.DataFrame({"image": [base64.b64encode(example).decode()]}),
    )
    with _importable(files.loader.parent):  # MLflow runs the loader to see whether it can
        info = call_server(log_model)
    call_server(lambda: mlflow.log_metrics(dict(metrics), step=step, model_id=info.model_id, dataset=dataset))
    return f"models:/{info.model_id}"


@contextmanager
def _importable(package: Path) -> Iterator[None]:
    """Within the block the package can be imported, without compiled files, which would go with it; what was imported
    of it is forgotten afterwards, since its files may go."""
    before, compiles = set(sys.modules), not sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(package.parent))
    try:
        yield
    finally:
        sys.path.remove(str(package.parent))
        sys.dont_write_bytecode = not compiles
        for name in set(sys.modules) - before:
            if name.split(".")[0] == package.name:
                del sys.modules[name]


@dataclass(frozen=True)
class LoggedModel:
    """A model that `log_classifier` logged: its `uri`, the folder of its checkpoint, and the id of the run that logged
    it, if that is known."""

    uri: str
    checkpoint: Path
    run_id: str | None


def find_model(given: str) -> LoggedModel:
    """The model that is `given` by an address (models:/NAME@champion, models:/NAME/VERSION, models:/MODEL_ID), by the
    id of a run of main or evaluate, by the name of a registered model, whose champion it is then, or by a folder that
    it was downloaded to. UserError if there is none."""
    if not re.match(r"\w+:/", given):
        if Path(given).expanduser().is_dir():
            return _in_folder(given, Path(given).expanduser())
        given = _of_run(given) if RUN_ID.fullmatch(given) else f"models:/{given}@{CHAMPION_ALIAS}"
    try:
        return _in_folder(given, Path(mlflow.artifacts.download_artifacts(given)))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"The model {given} cannot be fetched ({first_line(error).rstrip('.')}); give models:/NAME@champion, "
            "models:/NAME/VERSION, the id of a run of main or evaluate, or the folder of a model."
        ) from None


def _of_run(run_id: str) -> str:
    """The address of the model that a run of main or evaluate logged."""
    evaluated, _ = evaluation_of(run_id)
    outputs = call_server(lambda: MlflowClient().get_run(evaluated)).outputs
    if outputs is None or not outputs.model_outputs:
        raise UserError(f"Run {run_id} has logged no model; give the id of a finished run of main or evaluate.")
    return f"models:/{outputs.model_outputs[-1].model_id}"


def _in_folder(given: str, folder: Path) -> LoggedModel:
    """The model in a local folder, which was `given` so."""
    try:
        model = Model.load(folder)
    except (MlflowException, OSError):
        raise UserError(f"There is no model in {given}: it has no file MLmodel; give the folder that has it.") from None
    kept = model.flavors.get("python_function", {}).get("artifacts", {}).get(CHECKPOINT)
    if kept is None:
        raise UserError(f"The model {given} is no picture classifier of this project; give one that evaluate logged.")
    checkpoint: Path = (folder / str(kept["path"])).resolve()
    if not checkpoint.is_relative_to(folder.resolve()):
        raise UserError(f"The model {given} names {kept['path']}, outside its folder; do not trust it.")
    return LoggedModel(given, checkpoint, model.run_id)


def show_result(source_run_id: str, target_run_id: str, artifacts: Sequence[str]) -> None:
    """Show the result of the source on the target's page too: its description, verdict, model, pictures and
    `artifacts`."""
    client = MlflowClient()
    flush(source_run_id)
    source = call_server(lambda: client.get_run(source_run_id))
    shown = {name: value for name, value in source.data.tags.items() if name in SHOWN}
    set_tags(target_run_id, shown)
    if (inputs := source.inputs) is not None:
        call_server(lambda: client.log_inputs(target_run_id, datasets=inputs.dataset_inputs))
    if (outputs := source.outputs) is not None and outputs.model_outputs:
        call_server(lambda: client.log_outputs(target_run_id, models=outputs.model_outputs))
    for name in artifacts:
        log_file(target_run_id, artifact(source_run_id, name))
