"""Registered models: versions, and which of them is the champion."""

import mlflow
from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.store import cache_folder
from pipeline.tracking.names import CHAMPION
from pipeline.tracking.sender import ask

ALIAS = "champion"
TEST_CONTENT = "thaw.test_content"
METRIC = "thaw.metric"
METRIC_VALUE = "thaw.metric_value"
LONGEST_DESCRIPTION = 5000


def register(model_uri: str, name: str, description: str) -> str:
    """Make the logged model a new version of the registered model `name`; gives the version."""
    version = ask(lambda: mlflow.register_model(model_uri, name)).version
    ask(lambda: MlflowClient().update_model_version(name, version, description[:LONGEST_DESCRIPTION]))
    return str(version)


def crown(name: str, version: str, metric: str, value: float, test_content: str) -> str:
    """Give `version` the alias "champion" if there is none, or if its `metric` is higher than the standing
    champion's on the same test content (a digest of it). Gives a sentence that says what was done and why.

    Both are tagged on the version, so that a later one can be compared with it.
    """
    client = MlflowClient()
    lock = cache_folder() / "champions.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # two that end at the same time must not both be compared with the one before
        standing = _champion(client, name)
        wins, outcome = _compare(standing, name, version, metric, value, test_content)
        if wins:
            client.set_registered_model_alias(name, ALIAS, version)
    tags = {TEST_CONTENT: test_content, METRIC: metric, METRIC_VALUE: repr(value), CHAMPION: outcome}
    for key, text in tags.items():
        client.set_model_version_tag(name, version, key, text)
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
            f"{stays}: it was judged on other pictures, so that its figures and those of version {version} cannot be "
            "compared."
        )
    if tags.get(METRIC) != metric:
        return False, f"{stays}: it was judged by {tags.get(METRIC)}, and version {version} by {metric}."
    before = float(tags[METRIC_VALUE])
    if value > before:
        return True, (
            f"{new} is the new champion: {metric} {value:.4f} against {before:.4f} of version {standing.version}, on "
            "the same pictures."
        )
    return False, f"{stays}: {metric} {value:.4f} of version {version} does not beat its {before:.4f}."


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:
        return None
