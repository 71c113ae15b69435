import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from pipeline import publishing, tracking
from pipeline.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.manifest import COLUMNS, Manifest
from pipeline.publishing import judged_content, publish, registered_name
from pipeline.recipe import Recipe, flatten

SPLITS = ["train", "train", "valid", "valid", "test", "test"]


def manifest_of(**changed) -> Manifest:
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(6)],
            "label": ["cat", "dog"] * 3,
            "split": SPLITS,
            "hash": [f"{row:064x}" for row in range(6)],
            "width_px": 32,
            "height_px": 32,
            "mode": "RGB",
            "group": "",
            "weight": 1.0,
        }
    ).assign(**changed)
    return Manifest("farm", Path("/nowhere"), ["cat", "dog"], table[COLUMNS], pd.DataFrame(columns=["path", "reason"]))


@pytest.mark.parametrize(
    ("register_as", "data", "name"),
    [("auto", "my photos", "thaw-my-photos"), ("auto", "a/b:c", "thaw-a-b-c"), ("mine", "farm", "mine"), ("", "x", "")],
)
def test_a_model_is_registered_under_its_datas_name_unless_the_recipe_names_it(register_as, data, name):
    assert registered_name(register_as, data) == name


def test_the_content_judged_on_is_that_of_the_pictures_and_labels_of_one_split():
    content = judged_content(manifest_of(), "test")
    order = manifest_of()
    shuffled = Manifest(
        order.name, order.root, order.classes, order.table[::-1].reset_index(drop=True), order.set_aside
    )
    assert judged_content(shuffled, "test") == content
    assert judged_content(manifest_of(path="other.png"), "test") == content
    assert judged_content(manifest_of(), "valid") != content
    assert judged_content(manifest_of(label=["cat", "dog", "cat", "dog", "dog", "dog"]), "test") != content
    assert judged_content(manifest_of(hash=[f"{row:064x}" for row in (0, 1, 2, 3, 4, 9)]), "test") != content
    assert judged_content(manifest_of(hash=[f"{row:064x}" for row in (7, 8, 9, 3, 4, 5)]), "test") == content


def test_what_was_judged_is_logged_registered_and_champion(tracking_server, tmp_path, capsys):
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", False, epochs=3, steps=30)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    by_class = pd.DataFrame({"class": ["cat", "dog"], "precision": [0.5, 1.0]})

    def run(accuracy: float, register_as: str = "auto") -> str:
        with tracking.open_run("evaluate", {}, {}) as run_id:
            publish(
                run_id, tmp_path / "checkpoint", manifest_of(), pixels, 1.25, "test", {"test/accuracy": accuracy},
                by_class, "Fine.", flatten(Recipe()), register_as, "accuracy", onnx=False,
            )  # fmt: skip
        return run_id

    first = MlflowClient().get_run(run(0.5))
    assert first.data.tags[tracking.MODEL] == "models:/thaw-farm/1"
    assert first.data.metrics == {"test/accuracy": 0.5, "calibration/temperature": 1.25}
    assert first.inputs.dataset_inputs[0].dataset.name == "farm"
    assert "is the champion: there was none" in first.data.tags[tracking.CHAMPION]
    assert first.data.tags[tracking.CHAMPION] in capsys.readouterr().out
    card = tracking.artifact(first.info.run_id, "model_card.md").read_text()
    assert MlflowClient().get_model_version("thaw-farm", "1").description == card
    checkpoint = tracking.model_checkpoint("models:/thaw-farm@champion")
    assert json.loads((checkpoint / "calibration.json").read_text()) == {"temperature": 1.25}

    second = MlflowClient().get_run(run(0.75))
    assert str(MlflowClient().get_model_version_by_alias("thaw-farm", "champion").version) == "2"
    assert "is the new champion" in second.data.tags[tracking.CHAMPION]

    unregistered = MlflowClient().get_run(run(0.9, register_as=""))
    assert tracking.MODEL not in unregistered.data.tags
    assert len(MlflowClient().search_model_versions("name = 'thaw-farm'")) == 2
    assert len(unregistered.outputs.model_outputs) == 1


def test_as_onnx_it_comes_with_the_difference_that_was_measured(tracking_server, tmp_path, monkeypatch):
    asked = []

    def export(classifier, squares, folder):
        asked.append(len(squares))
        folder.mkdir()
        (folder / "model.onnx").touch()
        return 0.25

    monkeypatch.setattr("pipeline.onnx_export.export_onnx", export)
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", False)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    pixels = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(publishing, "CHECKED_PICTURES", 1)
    with tracking.open_run("evaluate", {}, {}) as run_id:
        publish(
            run_id, tmp_path / "checkpoint", manifest_of(), pixels, 1.0, "test", {"test/accuracy": 0.5},
            pd.DataFrame({"class": ["cat", "dog"]}), "Fine.", flatten(Recipe()), "", "accuracy", onnx=True,
        )  # fmt: skip
    assert asked == [1]
    assert MlflowClient().get_run(run_id).data.metrics["onnx/max_difference"] == 0.25
    assert tracking.artifact(run_id, "onnx/model.onnx").is_file()
