import base64
import io
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from pipeline import tracking
from pipeline.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from pipeline.decode import decode_square
from pipeline.pins import SERVED_MODEL, pinned
from pipeline.predict import predict

CLASSES = ["cat", "dog", "hen"]
STEP = 70
NUMBERS = ["confidence", "probability/cat", "probability/dog", "probability/hen"]


@dataclass(frozen=True)
class Served:
    """A model that was logged, registered and loaded again, and the checkpoint that it came from."""

    version: str | None
    run_id: str
    model: Any
    folder: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Served]:
    """One model for all tests here: logging it takes seconds."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", sys.path.copy())  # loading a model puts its own code on the path
        shutil.copy(empty_database, folder / "mlflow.db")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        experiment = MlflowClient().create_experiment("served", artifact_location=str(folder / "artifacts"))
        patch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        torch.manual_seed(0)
        checkpoint = Checkpoint("test_resnet", CLASSES, 8, 0.5, 32, "crop", False)
        network = build_network(checkpoint)
        torch.nn.init.normal_(network.head[-1].weight, std=3)
        save_checkpoint(network, checkpoint, folder / "checkpoint")
        with tracking.open_run("evaluate", {}, {}) as run_id:
            version = tracking.log_classifier(
                SERVED_MODEL, folder / "checkpoint", pinned(), CLASSES, "tiny", {"test/accuracy": 0.75}, STEP
            )
        model = mlflow.pyfunc.load_model("models:/tiny/1")
        local = Path(mlflow.artifacts.download_artifacts("models:/tiny/1", dst_path=str(folder / "fetched")))
        yield Served(version, run_id, model, local, folder / "checkpoint")


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Encoded pictures of several kinds and shapes."""
    draw = np.random.default_rng(0)
    found = []
    for kind, shape in (("PNG", (40, 60, 3)), ("JPEG", (32, 32, 3)), ("PNG", (50, 20)), ("BMP", (16, 16, 3))):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(file, kind)
        found.append(file.getvalue())
    return found


def test_the_served_probabilities_are_those_of_predict(served, pictures):
    network, checkpoint = load_checkpoint(served.checkpoint)
    pixels = np.stack([decode_square(one, checkpoint.image_px, checkpoint.fit, checkpoint.grey) for one in pictures])
    wanted = predict(network, pixels, np.arange(len(pixels)), 4, torch.device("cpu"))
    found = served.model.predict(pd.DataFrame({"image": pictures}))
    np.testing.assert_allclose(found[NUMBERS[1:]], wanted, atol=1e-4)
    assert np.ptp(wanted, axis=0).max() > 1e-2, "the pictures have to be told apart for this to mean anything"
    assert found["label"].tolist() == [CLASSES[index] for index in wanted.argmax(1)]
    np.testing.assert_allclose(found["confidence"], wanted.max(1), atol=1e-4)


def test_bytes_and_base64_text_with_or_without_line_breaks_give_the_same(served, pictures):
    texts = [base64.b64encode(one).decode() for one in pictures]
    in_lines = [base64.encodebytes(one).decode() for one in pictures]
    windows_lines = [text.replace("\n", "\r\n") for text in in_lines]
    assert in_lines[0].count("\n") > 1
    by_bytes, *by_text = (
        served.model.predict(pd.DataFrame({"image": one})) for one in (pictures, texts, in_lines, windows_lines)
    )
    for found in by_text:
        pd.testing.assert_frame_equal(found, by_bytes)


def test_a_table_without_a_picture_is_told_in_a_sentence(served):
    with pytest.raises(ValueError, match="The table has no row; give one or more pictures in the column image"):
        served.model.predict(pd.DataFrame({"image": pd.Series([], dtype=object)}))


def test_one_picture_is_answered_as_it_is_among_others(served, pictures):
    together = served.model.predict(pd.DataFrame({"image": pictures}))
    alone = served.model.predict(pd.DataFrame({"image": pictures[2:3]}))
    np.testing.assert_allclose(alone[NUMBERS], together[NUMBERS].iloc[2:3], atol=1e-5)


@pytest.mark.parametrize("broken", ["other bytes", "nothing", "cut", "other text", "no base64", "a stray character"])
def test_what_is_no_picture_is_told_with_its_row(served, pictures, broken):
    texts = [base64.b64encode(one).decode() for one in pictures]
    content = {
        "other bytes": b"no picture",
        "nothing": b"",
        "cut": pictures[0][:-40],
        "other text": base64.b64encode(b"no picture").decode(),
        "no base64": "no picture!",
        "a stray character": texts[0][:8] + "!" + texts[0][8:],
    }[broken]
    good = texts[:2] if isinstance(content, str) else pictures[:2]
    with pytest.raises(ValueError, match="Row 2 of column image is no picture"):
        served.model.predict(pd.DataFrame({"image": [*good, content]}))


def test_the_model_says_what_it_takes_and_what_it_gives(served):
    signature = served.model.metadata.signature
    assert [(one.name, one.type.name) for one in signature.inputs] == [("image", "binary")]
    assert signature.outputs.input_names() == ["label", *NUMBERS]


def test_the_model_holds_no_pickle_and_no_weights_but_safetensors(served):
    kinds = {path.suffix for path in served.folder.rglob("*") if path.is_file()}
    assert ".safetensors" in kinds
    assert not kinds & {".pkl", ".pickle", ".pth", ".pt", ".bin", ".joblib"}


def test_the_model_brings_its_code_and_its_exact_requirements(served):
    assert (served.folder / "code" / "pipeline" / "decode.py").is_file()
    assert not list(served.folder.rglob("*.pyc"))
    assert (served.folder / "requirements.txt").read_text(encoding="utf-8").split() == pinned()


def test_the_model_is_registered_with_the_version_that_was_told(served):
    assert served.version == "1"
    registered = MlflowClient().get_model_version("tiny", "1")
    assert (registered.run_id, registered.status) == (served.run_id, "READY")


def test_the_metrics_are_linked_to_the_model(served):
    model_id = served.model.metadata.model_id
    metrics = MlflowClient().get_logged_model(model_id).metrics
    assert {one.key: one.value for one in metrics} == {"test/accuracy": 0.75}


def test_the_metrics_stand_at_the_step_that_was_told_alone(served):
    history = MlflowClient().get_metric_history(served.run_id, "test/accuracy")
    assert [(one.step, one.value) for one in history] == [(STEP, 0.75)]


def test_without_a_name_the_model_is_logged_and_not_registered(served):
    with tracking.open_run("evaluate", {}, {}) as run_id:
        version = tracking.log_classifier(SERVED_MODEL, served.checkpoint, pinned(), CLASSES, "", {}, STEP)
    assert version is None
    assert len(MlflowClient().get_run(run_id).outputs.model_outputs) == 1
    assert len(MlflowClient().search_model_versions("name = 'tiny'")) == 1
