import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline import tracking
from pipeline.data.augment import view_matrices
from pipeline.data.decode import decode_square
from pipeline.data.picture_input import READ_PATHS
from pipeline.data.readers.sources import list_source
from pipeline.evaluation.calibration import apply_temperature
from pipeline.evaluation.predict import predict
from pipeline.models.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from pipeline.models.classifier import Tta, save_classifier
from pipeline.runs.publish import SERVED_MODEL
from pipeline.runs.served_code import copy_served_code, pinned
from pipeline.system.errors import UserError

CLASSES = ["cat", "dog", "hen"]
STEP = 70
TEMPERATURE = 1.7
TTA = Tta("all", 0.8, 10)
NUMBERS = ["confidence", "probability/cat", "probability/dog", "probability/hen"]


@dataclass(frozen=True)
class Served:
    """A model that was logged and loaded again, and the folder with the checkpoint that it came from."""

    uri: str
    run_id: str
    model: Any
    copy: Path
    folder: Path


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Real pictures of solar cells, encoded in several ways and shapes."""
    listing = list_source("elpv", [])
    found = []
    for index, (kind, cut) in enumerate(
        (("PNG", (200, 300)), ("JPEG", (300, 300)), ("PNG", (300, 100)), ("BMP", (64, 64)))
    ):
        with Image.open(listing.root / listing.paths[40 * index]) as picture:
            found.append(encoded(np.asarray(picture.convert("RGB"))[: cut[0], : cut[1]], kind))
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, pictures: list[bytes]) -> Iterator[Served]:
    """One model for all tests here: logging it takes seconds."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", sys.path.copy())  # loading a model puts its own code on the path
        shutil.copy(empty_database, folder / "mlflow.db")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", READ_PATHS):
            patch.delenv(name, raising=False)
        experiment = MlflowClient().create_experiment("served", artifact_location=str(folder / "artifacts"))
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        torch.manual_seed(0)
        checkpoint = Checkpoint("test_resnet", CLASSES, 8, 0.5, 32, "crop", False)
        network = build_network(checkpoint)
        torch.nn.init.normal_(network.head[-1].weight, std=3)
        save_checkpoint(network, checkpoint, folder / "checkpoint")
        save_classifier([folder / "checkpoint"], TEMPERATURE, folder / "served", tta=TTA)
        (folder / "card.md").write_text("# Pets")
        loader = copy_served_code(SERVED_MODEL, folder / "copied")
        with tracking.open_run("evaluate", {}, {}) as run_id:
            uri = tracking.log_classifier(
                tracking.ModelFiles(loader, folder / "served", folder / "card.md", pinned()), CLASSES, 2,
                pictures[1], {"test/accuracy": 0.75}, STEP, tracking.log_dataset("pets", folder, "d" * 64, "test"),
            )  # fmt: skip
        local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder / "copy")))
        model = mlflow.pyfunc.load_model(uri)
        yield Served(uri, run_id, model, local, folder)


def environment(served: Served) -> dict[str, str]:
    """Where the packages of this project are not found but for those that the model brings."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return found | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


Ask = Callable[[Any], tuple[int, Any]]


@pytest.fixture(scope="module")
def ask(served: Served) -> Iterator[Ask]:
    """Posts to a real `mlflow models serve`; gives the status and the answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", served.uri, "--env-manager", "local", "--port", str(port)]
    log = (served.folder / "server.log").open("wb")
    server = subprocess.Popen(
        command, cwd=served.folder, env=environment(served), stdout=log, stderr=log, start_new_session=True
    )

    def post(body: Any, kind: str = "application/json") -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", content, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)["predictions"]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (served.folder / "server.log").read_text()
                time.sleep(0.2)
        yield post
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
        log.close()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def request_of(*pictures: Any, **params: Any) -> dict[str, Any]:
    return {"dataframe_split": {"columns": ["image"], "data": [[one] for one in pictures]}, "params": params}


def test_the_served_probabilities_are_those_of_predict_after_the_temperature(served, pictures):
    network, checkpoint = load_checkpoint(served.folder / "checkpoint")
    pixels = np.stack([decode_square(one, checkpoint.image_px, checkpoint.fit, checkpoint.grey) for one in pictures])
    plain = predict(network, pixels, np.arange(len(pixels)), 4, torch.device("cpu"))
    wanted = plain ** (1 / TEMPERATURE)
    wanted /= wanted.sum(1, keepdims=True)
    found = served.model.predict(pd.DataFrame({"image": pictures}))
    np.testing.assert_allclose(found[NUMBERS[1:]], wanted, atol=1e-4)
    assert np.ptp(wanted, axis=0).max() > 1e-2, "the pictures have to be told apart for this to mean anything"
    assert np.abs(wanted - plain).max() > 1e-2, "the temperature has to matter for this to mean anything"
    assert found["label"].tolist() == [CLASSES[index] for index in wanted.argmax(1)]
    np.testing.assert_allclose(found["confidence"], wanted.max(1), atol=1e-4)


def test_with_tta_the_answer_is_the_mean_over_the_views_it_was_evaluated_with(served, pictures, ask):
    network, checkpoint = load_checkpoint(served.folder / "checkpoint")
    pixels = np.stack([decode_square(one, checkpoint.image_px, checkpoint.fit, checkpoint.grey) for one in pictures])
    views = view_matrices(TTA.flip, TTA.crop, TTA.views)
    seen = predict(network, pixels, np.arange(len(pixels)), 4, torch.device("cpu"), views)
    wanted = apply_temperature(seen, TEMPERATURE)
    table = pd.DataFrame({"image": pictures})
    np.testing.assert_allclose(served.model.predict(table, params={"tta": True})[NUMBERS[1:]], wanted, atol=1e-4)
    assert np.abs(served.model.predict(table)[NUMBERS[1:]] - wanted).max().max() > 1e-3, "the views have to matter"
    status, found = ask(request_of(*map(text, pictures), tta=True))
    assert status == 200
    np.testing.assert_allclose([[row[name] for name in NUMBERS[1:]] for row in found], wanted, atol=1e-4)


def test_the_likeliest_classes_are_listed_from_the_top_as_many_as_asked_for(served, pictures):
    table = pd.DataFrame({"image": pictures})
    usual = served.model.predict(table)
    assert [len(labels) for labels in usual["top_labels"]] == [2] * len(pictures), "the model's own default"
    everything = served.model.predict(table, params={"top_k": 9})
    for row in everything.itertuples():
        assert sorted(row.top_labels) == CLASSES
        assert row.top_labels[0] == row.label
        assert row.top_probabilities == sorted(row.top_probabilities, reverse=True)
        assert sum(row.top_probabilities) == pytest.approx(1)
    with pytest.raises(MlflowException, match="top_k is 0; give a whole number from 1 up"):
        served.model.predict(table, params={"top_k": 0})


def test_bytes_text_paths_and_arrays_give_the_same(served, pictures, tmp_path):
    pictures = [one for one in pictures if not one.startswith(b"\xff\xd8")]  # JPEGs are decoded at a smaller scale
    paths = [tmp_path / f"{index}.picture" for index in range(len(pictures))]
    for path, content in zip(paths, pictures, strict=True):
        path.write_bytes(content)
    arrays = [np.asarray(Image.open(io.BytesIO(one))) for one in pictures]
    by_bytes, *others = (
        served.model.predict(pd.DataFrame({"image": pd.Series(list(one), dtype=object)}))
        for one in (pictures, [text(one) for one in pictures], paths, arrays)
    )
    for found in others:
        pd.testing.assert_frame_equal(found, by_bytes)


def test_one_picture_is_answered_as_it_is_among_others(served, pictures):
    together = served.model.predict(pd.DataFrame({"image": pictures}))
    alone = served.model.predict(pd.DataFrame({"image": pictures[2:3]}))
    np.testing.assert_allclose(alone[NUMBERS], together[NUMBERS].iloc[2:3], atol=1e-5)


def test_more_pictures_than_a_batch_come_back_in_their_order(served, pictures):
    few = served.model.predict(pd.DataFrame({"image": pictures}))
    many = served.model.predict(pd.DataFrame({"image": pictures * 20}))
    np.testing.assert_allclose(many[NUMBERS], np.tile(few[NUMBERS], (20, 1)), atol=1e-5)


def test_what_is_no_picture_is_told_with_its_row(served, pictures):
    with pytest.raises(MlflowException, match="Row 2 of column image is no picture that can be decoded: it is in no"):
        served.model.predict(pd.DataFrame({"image": [*pictures[:2], b"no picture"]}))


def test_the_model_says_what_it_takes_and_what_it_gives(served):
    signature = served.model.metadata.signature
    assert [(one.name, one.type.name) for one in signature.inputs] == [("image", "string")]
    assert signature.outputs.input_names() == ["label", *NUMBERS, "top_labels", "top_probabilities"]
    assert [(one.name, one.default) for one in signature.params] == [("top_k", 2), ("tta", False)]


def test_its_example_is_a_real_picture_that_it_answers(served, pictures):
    example = served.model.input_example
    assert (
        served.model.predict(example)["label"].tolist()
        == served.model.predict(pd.DataFrame({"image": pictures[1:2]}))["label"].tolist()
    )


def test_the_model_holds_no_pickle_and_no_weights_but_safetensors(served):
    kinds = {path.suffix for path in served.copy.rglob("*") if path.is_file()}
    assert ".safetensors" in kinds
    assert not kinds & {".pkl", ".pickle", ".pth", ".pt", ".bin", ".joblib"}


def test_the_model_brings_its_code_its_card_and_its_exact_requirements(served):
    (package,) = (served.copy / "code").iterdir()
    assert package.name.startswith("thaw_model_")
    assert (package / "data" / "decode.py").is_file()
    assert not list(served.copy.rglob("*.pyc"))
    assert (served.copy / "artifacts" / "card.md").read_text() == "# Pets"
    assert (served.copy / "requirements.txt").read_text(encoding="utf-8").split() == pinned()


def test_the_metrics_are_linked_to_the_model_and_to_the_pictures(served):
    (metric,) = MlflowClient().get_logged_model(served.uri.removeprefix("models:/")).metrics
    assert (metric.key, metric.value, metric.step) == ("test/accuracy", 0.75, STEP)
    assert (metric.dataset_name, metric.dataset_digest) == ("pets", "d" * 36)
    history = MlflowClient().get_metric_history(served.run_id, "test/accuracy")
    assert [(one.step, one.value) for one in history] == [(STEP, 0.75)]


def test_its_checkpoint_is_found_by_its_address_and_what_is_no_model_is_told(served, tmp_path):
    folder = tracking.find_model(served.uri).checkpoint
    assert (folder / "checkpoint.json").is_file()
    for address in ("models:/nowhere@champion", str(tmp_path / "nowhere"), "models:/nowhere/a/b/c"):
        with pytest.raises(UserError, match=r"The model .*nowhere.* cannot be fetched .*; give models:/NAME@champion"):
            tracking.find_model(address)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("checkpoint:", "other:", "is no picture classifier of this"),
        ("artifacts/served", "../../served", "outside its folder"),
    ],
)
def test_a_model_that_is_none_of_ours_or_names_other_places_is_refused(served, tmp_path, before, after, said):
    shutil.copytree(served.copy, tmp_path / "model")
    facts = tmp_path / "model" / "MLmodel"
    facts.write_text(facts.read_text().replace(before, after))
    with pytest.raises(UserError, match=said):
        tracking.find_model(str(tmp_path / "model"))


def test_a_version_is_registered_with_its_card(served):
    version = tracking.register(served.uri, "tiny", "# Pets\n" + "x" * 9000)
    assert version == "1"
    registered = MlflowClient().get_model_version("tiny", "1")
    assert (registered.run_id, registered.status) == (served.run_id, "READY")
    assert registered.description.startswith("# Pets")


def test_mlflow_models_serve_answers_pictures(served, ask, pictures):
    wanted = served.model.predict(pd.DataFrame({"image": pictures}))
    as_written = (
        text, lambda one: f"data:image/png;base64,{text(one)}", lambda one: base64.encodebytes(one).decode(),
        lambda one: base64.urlsafe_b64encode(one).decode().rstrip("="),
    )  # fmt: skip
    bodies = [
        body
        for written in ([write(one) for one in pictures] for write in as_written)
        for body in (
            request_of(*written),
            {"dataframe_records": [{"image": one} for one in written]},
            {"inputs": {"image": written}},
            {"instances": [{"image": one} for one in written]},
        )
    ]
    for body in bodies:
        status, found = ask(body)
        assert status == 200, found
        assert [row["label"] for row in found] == wanted["label"].tolist()
        np.testing.assert_allclose([row["confidence"] for row in found], wanted["confidence"], atol=1e-5)
    status, found = ask(request_of(text(pictures[0]), top_k=1))
    assert (status, len(found[0]["top_labels"])) == (200, 1)


def bomb(megapixels: int) -> bytes:
    """A small PNG file of a huge picture."""
    file = io.BytesIO()
    Image.new("1", (1000, megapixels * 1000)).save(file, "PNG")
    return file.getvalue()


def test_mlflow_models_serve_tells_what_is_wrong_in_a_sentence_and_goes_on(ask, pictures, tmp_path):
    (tmp_path / "own.png").write_bytes(pictures[0])
    good = text(pictures[0])
    mistakes: list[tuple[Any, str]] = [
        (
            request_of(text(b"no picture")),
            "Row 0 of column image is no picture that can be decoded: it is in no format",
        ),
        (request_of(good, text(pictures[1][:-2000])), "Row 1 of column image is no picture that can be decoded"),
        (request_of(text(bomb(100))), "it has 100 million pixels, and 89 million are taken"),
        (request_of(text(bomb(400))), "Row 0 of column image is no picture that can be decoded: Image size"),
        (request_of(), "The table has no row; give one or more pictures in the column image"),
        ({"dataframe_records": []}, "missing inputs ['image']"),
        ({"inputs": {"image": []}}, "The table has no row"),
        ({"instances": []}, "The table has no row"),
        ({"dataframe_records": [{"picture": good}]}, "missing inputs ['image']"),
        (request_of(good, top_k=0), "top_k is 0"),
        (request_of(good, top_k="many"), "top_k"),
        (request_of(good, tta="often"), "tta"),
        (request_of(None), "it is of type NoneType; give bytes, base64 text"),
        (request_of([[[1, 2, 3]]]), "it is of type list; give bytes, base64 text"),
        (request_of("/tmp/ab/own"), "it is in no format that is known"),
        (request_of(str(tmp_path / "own.png")), "it is text that is no base64; a path is read if"),
        ({"inputs": {"image": [str(tmp_path / "own.png")]}}, "it is text that is no base64; a path is read if"),
        (b"no JSON", "valid JSON"),
    ]
    for body, words in mistakes:
        status, answer = ask(body)
        assert 400 <= status < 500, (words, status, answer)
        assert words in answer, answer
        assert "Traceback" not in answer
    as_csv = f"image\n{tmp_path / 'own.png'}\n".encode()
    status, answer = ask(as_csv, "text/csv")
    assert (status, "a path is read if" in answer) == (400, True)
    assert ask(request_of(good))[0] == 200


@pytest.mark.slow
def test_mlflow_models_predict_answers_pictures_by_their_paths_where_that_is_allowed(served, pictures, tmp_path):
    (tmp_path / "own.png").write_bytes(pictures[0])
    (tmp_path / "paths.csv").write_text(f"image\n{tmp_path / 'own.png'}\n{text(pictures[1])}\n")
    command = ["mlflow", "models", "predict", "-m", served.uri, "--env-manager", "local"]
    subprocess.run(
        [*command, "-i", "paths.csv", "-t", "csv", "-o", "answer.json"], cwd=tmp_path, check=True,
        env=environment(served) | {READ_PATHS: "true"}, capture_output=True,
    )  # fmt: skip
    answer = json.loads((tmp_path / "answer.json").read_text())
    wanted = served.model.predict(pd.DataFrame({"image": pictures[:2]}))
    assert [row["label"] for row in answer["predictions"]] == wanted["label"].tolist()
