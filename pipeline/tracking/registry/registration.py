"""The model registry: names, versions, and which pictures they are of."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.system.console import warn
from pipeline.system.errors import UserError
from pipeline.tracking.names import first_line
from pipeline.tracking.sender import Answer, call_server
from pipeline.tracking.server import is_absent

DATA, DATA_SAMPLE, DATA_SOURCE = "thaw.data", "thaw.data_sample", "thaw.data_source"
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

    return ask_registry(f"tell which pictures models of the name {name} are of", look_up)


def register(model_uri: str, name: str, description: str, tags: Mapping[str, str] | None = None) -> str:
    """Make the logged model a new version of the registered model `name`; gives the version. RegistryRefusal if the
    registry does not take it."""
    ask_registry(f"take a model of the name {name}", lambda: _make_registered_model(name))
    create = partial(mlflow.register_model, model_uri, name, tags=dict(tags or {}))
    version = str(ask_registry(f"take a new version of {name}", create).version)
    try:
        describe = partial(MlflowClient().update_model_version, name, version, description[:LONGEST_DESCRIPTION])
        ask_registry(f"take the description of {name} version {version}", describe)
    except RegistryRefusal as refusal:
        warn(f"{refusal}; its card is model_card.md of the run.")
    return version


def check_registry(name: str) -> None:
    """Warns if the registry cannot say whether it has a model `name`, or would take none of that name."""
    try:
        ask_registry(f"have a model of the name {name}", partial(_is_registered, name))
    except RegistryRefusal as refusal:
        warn(f"{refusal}; the model will be logged and not registered, unless evaluate.register_as names another.")


def ask_registry(what: str, call: Callable[[], Answer]) -> Answer:
    """What `call` returns; RegistryRefusal if the registry, though it can be reached, does not do `what`."""
    try:
        return call_server(call)
    except (MlflowException, OSError) as error:
        raise RegistryRefusal(f"The model registry does not {what} ({first_line(error).rstrip('.')})") from None


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
