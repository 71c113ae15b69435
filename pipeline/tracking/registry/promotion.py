"""Which version of a registered model is the champion."""

from collections.abc import Mapping
from functools import partial

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.cache.location import cache_folder, shared_lock
from pipeline.tracking.names import CHAMPION, CHAMPION_ALIAS
from pipeline.tracking.registry.registration import RegistryRefusal, ask_registry
from pipeline.tracking.server import is_absent, is_invalid

TEST_CONTENT = "thaw.test_content"
METRIC = "thaw.metric"
METRIC_VALUE = "thaw.metric_value"


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
            standing = ask_registry(f"tell which version of {name} is its champion", lambda: _champion(client, name))
            wins, outcome = _compare(standing, name, version, metric, value, test_content)
            if wins:
                give = partial(client.set_registered_model_alias, name, CHAMPION_ALIAS, version)
                ask_registry(f"make {name} version {version} its champion", give)
        _tag_version(client, name, version, {CHAMPION: outcome})
    except RegistryRefusal as refusal:
        return (
            f"{refusal}; the champion is as it was, and python -c 'import mlflow; "
            f'mlflow.MlflowClient().set_registered_model_alias("{name}", "{CHAMPION_ALIAS}", "{version}")\' makes this '
            f"version ({metric} {value:.4f}) the champion later."
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
        return client.get_model_version_by_alias(name, CHAMPION_ALIAS)
    except MlflowException as error:
        # MLflow's own stores call an alias that is not there an invalid parameter.
        if is_absent(error) or (is_invalid(error) and CHAMPION_ALIAS not in client.get_registered_model(name).aliases):
            return None
        raise


def _tag_version(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, text in tags.items():
        tag = partial(client.set_model_version_tag, name, version, key, text)
        ask_registry(f"take the tag {key} of {name} version {version}", tag)
