"""Data sets as inputs of runs; logged and registered models, and which is the champion."""

import base64
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from pipeline.cache.location import cache_folder, shared_lock
from pipeline.system.console import warn
from pipeline.system.errors import UserError
from pipeline.tracking.artifacts import artifact, log_file
from pipeline.tracking.names import CHAMPION, SHOWN, first_line
from pipeline.tracking.sender import Answer, call_server, flush
from pipeline.tracking.server import is_absent, is_invalid
from pipeline.tracking.values import set_tags

CHECKPOINT = "checkpoint"


def log_dataset(name: str, folder: Path, digest: str, context: str) -> MetaDataset:
    """Log the pictures, by content digest, as the open run's input; gives the data set for `log_classifier`."""
    with warnings.catch_warnings(action="ignore"):  # a local folder fits two of MLflow's kinds of source
        source = resolve_dataset_source(str(folder))
    dataset = MetaDataset(source=source, name=name, digest=digest[:36])  # type: ignore[abstract]
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
            Schema([ColSpec("string", "image")]), Schema(outputs), ParamSchema([ParamSpec("top_k", "long", top_k)])
        ),
        input_example=pd.DataFrame({"image": [base64.b64encode(example).decode()]}),
    )
    with _importable(files.loader.parent):  # MLflow runs the loader to see whether it can
        info = call_server(log_model)
    call_server(lambda: mlflow.log_metrics(dict(metrics), step=step, model_id=info.model_id, dataset=dataset))
    return f"models:/{info.model_id}"


@contextmanager
def _importable(package: Path) -> Iterator[None]:
    """Within the block the package can be imported; what was imported of it is forgotten afterwards, since its files
    may go."""
    before = set(sys.modules)
    sys.path.insert(0, str(package.parent))
    try:
        yield
    finally:
        sys.path.remove(str(package.parent))
        for name in set(sys.modules) - before:
            if name.split(".")[0] == package.name:
                del sys.modules[name]


def model_checkpoint(model_uri: str) -> Path:
    """The checkpoint folder of a model that `log_classifier` logged, registered or not; UserError if there is none."""
    try:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri))
        flavors = Model.load(folder).flavors
    except (MlflowException, OSError) as error:
        raise UserError(
            f"The model {model_uri} cannot be fetched ({first_line(error)}); give models:/NAME@champion, "
            "models:/NAME/VERSION or models:/MODEL_ID, as its page says."
        ) from None
    kept = flavors.get("python_function", {}).get("artifacts", {}).get(CHECKPOINT)
    if kept is None:
        raise UserError(
            f"The model {model_uri} is no picture classifier of this project; give one that evaluate logged."
        )
    checkpoint: Path = (folder / str(kept["path"])).resolve()
    if not checkpoint.is_relative_to(folder.resolve()):
        raise UserError(f"The model {model_uri} names {kept['path']}, outside its folder; do not trust it.")
    return checkpoint


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


ALIAS = "champion"
DATA, DATA_SAMPLE, DATA_SOURCE = "thaw.data", "thaw.data_sample", "thaw.data_source"
TEST_CONTENT = "thaw.test_content"
METRIC = "thaw.metric"
METRIC_VALUE = "thaw.metric_value"
LONGEST_DESCRIPTION = 5000
MOST_MODELS = 1000
# A set that has grown or shrunk still shares so many of its pictures with what it was.
SHARED_BY_THE_SAME_SET = 0.5


class RegistryRefusal(UserError):
    """What the model registry does not do, and why; what was logged stays."""


@dataclass(frozen=True)
class PictureSet:
    """What tells sets of pictures apart: a `digest` of all contents and labels, in any order and split; a `sample` of
    these, by their lowest hashes; and the folder that they came from."""

    digest: str
    sample: tuple[str, ...]
    source: str

    @property
    def tags(self) -> dict[str, str]:
        """As the tags of a model version."""
        return {DATA: self.digest, DATA_SAMPLE: " ".join(self.sample), DATA_SOURCE: self.source}

    def is_that_of(self, tags: Mapping[str, str]) -> bool:
        """Whether a model version with these tags was trained on this set, or on an earlier state of it."""
        if tags.get(DATA) == self.digest:
            return True
        other = set(tags.get(DATA_SAMPLE, "").split())
        lowest = sorted(other.union(self.sample))[: len(self.sample)]
        shared = sum(one in other and one in self.sample for one in lowest)
        return tags.get(DATA_SOURCE) == self.source and shared >= SHARED_BY_THE_SAME_SET * len(lowest)


def name_in_registry(name: str, pictures: PictureSet) -> str:
    """`name`, unless versions of that name are of other pictures; then one beside it that is of these, or a new one.

    RegistryRefusal if that cannot be looked up.
    """

    def look_up() -> str:
        client = MlflowClient()
        there = client.search_registered_models(f"name LIKE '{name}%'", max_results=MOST_MODELS)
        beside = [model.name for model in there if re.fullmatch(f"{re.escape(name)}-[0-9a-f]{{8}}", model.name)]
        for one in (name, *sorted(beside)):
            tags = [version.tags for version in client.search_model_versions(f"name = '{one}'")]
            known = [of_version for of_version in tags if DATA in of_version]
            if not known or any(pictures.is_that_of(of_version) for of_version in known):
                return str(one)
        return f"{name}-{pictures.digest[:8]}"

    return _ask_registry(f"tell which pictures models of the name {name} are of", look_up)


def register(model_uri: str, name: str, description: str, tags: Mapping[str, str] | None = None) -> str:
    """Make the logged model a new version of the registered model `name`; gives the version. RegistryRefusal if the
    registry does not take it."""
    _ask_registry(f"take a model of the name {name}", lambda: _make_registered_model(name))
    create = partial(mlflow.register_model, model_uri, name, tags=dict(tags or {}))
    version = str(_ask_registry(f"take a new version of {name}", create).version)
    try:
        describe = partial(MlflowClient().update_model_version, name, version, description[:LONGEST_DESCRIPTION])
        _ask_registry(f"take the description of {name} version {version}", describe)
    except RegistryRefusal as refusal:
        warn(f"{refusal}; its card is model_card.md of the run.")
    return version


def check_registry(name: str) -> None:
    """Warns if the registry cannot say whether it has a model `name`, or would take none of that name."""
    try:
        _ask_registry(f"have a model of the name {name}", partial(_is_registered, name))
    except RegistryRefusal as refusal:
        warn(f"{refusal}; the model will be logged and not registered, unless evaluate.register_as names another.")


def promote_if_better(name: str, version: str, metric: str, value: float, test_content: str) -> str:
    """Give `version` the alias "champion" if there is none, or if its `metric` is higher than the champion's on the
    same `test_content`, a digest. Gives a sentence that says what was done and why.

    Metric and digest are tagged on the version, so that a later one can be compared with it. What the registry refuses
    is in the sentence, and leaves the alias alone.
    """
    client = MlflowClient()
    lock = shared_lock(cache_folder() / "champions.lock")
    try:
        tags = {TEST_CONTENT: test_content, METRIC: metric, METRIC_VALUE: repr(value)}
        _tag_version(client, name, version, tags)
        with lock:  # two that end at once must not both be compared with the one before
            standing = _ask_registry(f"tell which version of {name} is its champion", lambda: _champion(client, name))
            wins, outcome = _compare(standing, name, version, metric, value, test_content)
            if wins:
                give = partial(client.set_registered_model_alias, name, ALIAS, version)
                _ask_registry(f"make {name} version {version} its champion", give)
        _tag_version(client, name, version, {CHAMPION: outcome})
    except RegistryRefusal as refusal:
        return (
            f"{refusal}; the champion is as it was, and python -c 'import mlflow; "
            f'mlflow.MlflowClient().set_registered_model_alias("{name}", "{ALIAS}", "{version}")\' makes this version '
            f"({metric} {value:.4f}) the champion later."
        )
    return outcome


def _compare(
    standing: ModelVersion | None, name: str, version: str, metric: str, value: float, test_content: str
) -> tuple[bool, str]:
    new = f"{name} version {version}"
    if standing is None:
        return True, f"{new} is the champion: there was none ({metric} {value:.4f})."
    stays = f"{name} version {standing.version} stays champion"
    tags = standing.tags
    if tags.get(TEST_CONTENT) != test_content:
        return False, (
            f"{stays}: it was evaluated on other pictures, so that its figures and those of version {version} cannot "
            "be compared."
        )
    if tags.get(METRIC) != metric:
        return False, f"{stays}: it was evaluated by {tags.get(METRIC)}, and version {version} by {metric}."
    before = float(tags[METRIC_VALUE])
    if value > before:
        return True, (
            f"{new} is the new champion: {metric} {value:.4f} against {before:.4f} of version {standing.version}, on "
            "the same pictures."
        )
    return False, f"{stays}: {metric} {value:.4f} of version {version} does not beat its {before:.4f}."


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The champion; None only if the registry says that there is none."""
    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException as error:
        # MLflow's own stores call an alias that is not there an invalid parameter.
        if is_absent(error) or (is_invalid(error) and ALIAS not in client.get_registered_model(name).aliases):
            return None
        raise


def _is_registered(name: str) -> bool:
    try:
        return bool(MlflowClient().get_registered_model(name))
    except MlflowException as error:
        if is_absent(error):
            return False
        raise


def _make_registered_model(name: str) -> None:
    """Create the registered model if there is none; MlflowException if its name is taken by a prompt, which
    `mlflow.register_model` would add versions to."""
    if _is_registered(name):
        return
    try:
        MlflowClient().create_registered_model(name)
    except MlflowException:  # another process may have created it at the same time
        with suppress(MlflowException):
            if _is_registered(name):
                return
        raise


def _tag_version(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, text in tags.items():
        tag = partial(client.set_model_version_tag, name, version, key, text)
        _ask_registry(f"take the tag {key} of {name} version {version}", tag)


def _ask_registry(what: str, call: Callable[[], Answer]) -> Answer:
    """What `call` returns; RegistryRefusal if the registry, though it can be reached, does not do `what`."""
    try:
        return call_server(call)
    except (MlflowException, OSError) as error:
        raise RegistryRefusal(f"The model registry does not {what} ({first_line(error).rstrip('.')})") from None
