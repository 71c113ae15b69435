"""Files of runs on S3, which every client reaches by itself."""

import os
import threading

import boto3
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact import s3_artifact_repo
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from pipeline import tracking
from pipeline.cache.location import cache_folder
from pipeline.cache.store import publish
from pipeline.system.errors import UserError
from pipeline.tracking import contact, sender
from pipeline.tracking.experiments import ID, NAME
from tests.s3_server import BUCKET, KEYS, s3_server


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as s3:
        yield s3


@pytest.fixture
def s3(bucket, tracking_server, monkeypatch):
    """The experiment in use has its artifacts in a bucket."""
    for name, value in bucket.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "0.5")
    monkeypatch.setattr(sender, "SECONDS_BETWEEN_QUESTIONS", 0.1)
    monkeypatch.setattr(sender, "SHORTEST_PAUSE_SECONDS", 0.1)
    experiment = MlflowClient().create_experiment("on S3", artifact_location=f"s3://{BUCKET}/{tracking_server[-20:]}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    yield bucket
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    if bucket._server is None:
        bucket.open()


def fill(folder):
    (folder / "big.npy").write_bytes(bytes(range(256)) * 1000)
    (folder / "deep").mkdir()
    (folder / "deep" / "small.json").write_text("{}")


@pytest.fixture
def run(s3, tmp_path):
    """The id of a finished run with a store among its files, and a file beside it."""
    publish(tmp_path / "store", {}, fill)
    with tracking.open_run("precompute", {tracking.STAGE: "precompute", tracking.FINGERPRINT: "f"}, {}) as run_id:
        tracking.log_folder(run_id, tmp_path / "store", "activations")
        tracking.log_text(run_id, "seed: 0", "recipe.yaml")
        tracking.mark_done(run_id, 1.0, ("activations", "recipe.yaml"))
    return run_id


def test_files_go_to_the_bucket_and_come_back(run, s3):
    keys = [key.partition("/artifacts/")[2] for key in s3.names() if run in key]
    assert sorted(keys) == [
        "activations/big.npy", "activations/deep/small.json", "activations/store.json", "recipe.yaml",
    ]  # fmt: skip
    assert (tracking.artifact(run, "activations") / "big.npy").stat().st_size == 256_000
    assert tracking.artifact(run, "activations/deep/small.json").read_text() == "{}"
    assert tracking.artifact(run, "recipe.yaml").read_text() == "seed: 0"
    assert tracking.has_artifact(run, "activations")
    assert not tracking.has_artifact(run, "views")


def test_a_run_is_reused_as_long_as_all_of_its_files_are_there_in_their_sizes(run, s3):
    found = tracking.find_done("f", ("activations", "recipe.yaml"))
    assert found is not None
    assert found.run_id == run
    (key,) = [key for key in s3.names() if run in key and key.endswith("big.npy")]
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=b"half")
    assert tracking.find_done("f", ("activations", "recipe.yaml")) is None
    s3.client.delete_object(Bucket=BUCKET, Key=key)
    assert tracking.find_done("f", ("activations", "recipe.yaml")) is None
    assert not tracking.is_standing(run)


def test_what_was_fetched_is_fetched_no_more_and_half_of_it_is_nothing(run, s3, monkeypatch):
    whole = S3ArtifactRepository._download_file
    asked = []

    def breaks(repository, path, target):
        asked.append(path)
        whole(repository, path, target)
        if path.endswith("big.npy"):
            os.truncate(target, 1000)

    monkeypatch.setattr(S3ArtifactRepository, "_download_file", breaks)
    with pytest.raises(UserError, match=r"cannot be fetched \(only 1,000 of the 256,000 bytes of activations/big\.npy"):
        tracking.artifact(run, "activations")
    assert asked.count("activations/big.npy") > 1, "it is tried again"
    assert asked.count("activations/store.json") <= 1, "what came is not"
    monkeypatch.setattr(S3ArtifactRepository, "_download_file", whole)
    assert not [path for path in (cache_folder() / "artifacts").iterdir() if path.is_dir()]
    first = tracking.artifact(run, "activations")
    s3.shut()
    assert tracking.artifact(run, "activations") == first
    with pytest.raises(UserError, match=r"The artifact store at .* is away"):
        tracking.artifact(run, "recipe.yaml")


def test_what_is_gone_is_told_at_once(run, s3):
    with pytest.raises(UserError, match=r"views of run \w+ cannot be fetched \(there is no such file any more"):
        tracking.artifact(run, "views")


def test_a_download_outlasts_the_store_that_goes_away(run, s3, monkeypatch):
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "60")
    whole = S3ArtifactRepository._download_file

    def goes_away(repository, path, target):
        if path.endswith("big.npy"):
            monkeypatch.setattr(S3ArtifactRepository, "_download_file", whole)
            s3.shut()
            threading.Timer(0.5, s3.open).start()
        whole(repository, path, target)

    monkeypatch.setattr(S3ArtifactRepository, "_download_file", goes_away)
    assert (tracking.artifact(run, "activations") / "big.npy").stat().st_size == 256_000


def test_without_keys_a_sentence_says_what_to_set(run, monkeypatch):
    for name in KEYS:
        monkeypatch.delenv(name)
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    words = "AWS_ACCESS_KEY_ID"
    with pytest.raises(UserError, match=words):
        tracking.find_done("f", ("activations",))
    with pytest.raises(UserError, match=words):
        tracking.artifact(run, "activations")
    for name, other in ((ID, NAME), (NAME, ID)):
        contact._connect.cache_clear()
        monkeypatch.setenv(name, MlflowClient().get_run(run).info.experiment_id if name == ID else "on S3")
        monkeypatch.delenv(other, raising=False)
        with pytest.raises(UserError, match=words), tracking.open_run("main", {}, {}):
            pytest.fail("it is told before a run is opened")


def test_a_bucket_that_is_away_is_waited_for_as_the_tracking_server_is(run, s3, monkeypatch, capsys):
    s3.shut()
    with pytest.raises(UserError, match=r"The artifact store at http://127.0.0.1:\d+/thaw is away"):
        tracking.find_done("f", ("activations",))
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "60")
    opening = threading.Timer(0.5, s3.open)
    opening.start()
    assert tracking.find_done("f", ("activations",)).run_id == run
    opening.join()


def test_what_is_logged_while_the_bucket_is_away_arrives_when_it_is_back(s3, monkeypatch):
    monkeypatch.setenv("THAW_TRACKING_PATIENCE_SECONDS", "60")
    with tracking.open_run("train_head", {}, {}) as run_id:
        s3.shut()
        tracking.log_text(run_id, "seed: 0", "recipe.yaml")
        opening = threading.Timer(0.5, s3.open)
        opening.start()
        tracking.flush(run_id)
        opening.join()
    assert tracking.artifact(run_id, "recipe.yaml").read_text() == "seed: 0"
