import json
import re
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from pipeline import tracking
from pipeline.data.manifest import COLUMNS, Manifest
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.classifier import Tta, load_classifier
from pipeline.recipe.picture_sections import Augment
from pipeline.recipe.schema import Evaluate, Recipe
from pipeline.runs import publish as publishing
from pipeline.runs.ensemble.networks import EvaluatedNetwork
from pipeline.runs.fingerprint import PROJECT
from pipeline.runs.publish import SERVED_MODEL, evaluated_content, publish
from pipeline.runs.served_code import SERVING, pinned
from stages.__main__ import NOT_GIVEN
from stages.registry import OPTIONS
from tests.pipeline.small_evaluations import cats_and_dogs

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


def networks(folder: Path, pixels: np.ndarray) -> list[EvaluatedNetwork]:
    return [EvaluatedNetwork("resize, seed 0", folder / "checkpoint", pixels)]


@pytest.mark.parametrize(
    ("register_as", "data", "name"),
    [("auto", "my photos", "thaw-my-photos"), ("auto", "a/b:c", "thaw-a-b-c"), ("mine", "farm", "mine"), ("", "x", "")],
)
def test_a_model_is_registered_under_its_datas_name_unless_the_recipe_names_it(register_as, data, name):
    assert tracking.registered_name(register_as, data) == name


def test_the_content_evaluated_on_is_that_of_the_pictures_and_labels_of_one_split():
    content = evaluated_content(manifest_of(), "test")
    order = manifest_of()
    shuffled = Manifest(
        order.name, order.root, order.classes, order.table[::-1].reset_index(drop=True), order.set_aside
    )
    assert evaluated_content(shuffled, "test") == content
    assert evaluated_content(manifest_of(path="other.png"), "test") == content
    assert evaluated_content(manifest_of(), "valid") != content
    assert evaluated_content(manifest_of(label=["cat", "dog", "cat", "dog", "dog", "dog"]), "test") != content
    assert evaluated_content(manifest_of(hash=[f"{row:064x}" for row in (0, 1, 2, 3, 4, 9)]), "test") != content
    assert evaluated_content(manifest_of(hash=[f"{row:064x}" for row in (7, 8, 9, 3, 4, 5)]), "test") == content


def test_what_was_evaluated_is_logged_registered_and_champion(tracking_server, tmp_path, capsys):
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", False, epochs=3, steps=30)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    def run(accuracy: float, register_as: str = "auto") -> str:
        evaluation = cats_and_dogs({"test/accuracy": accuracy, "temperature": 1.25}, temperature=1.25)
        recipe = Recipe(evaluate=Evaluate(register_as=register_as, onnx=False))
        with tracking.open_run("evaluate", {}, {}) as run_id:
            publish(run_id, networks(tmp_path, pixels), manifest_of(), evaluation, recipe)
        return run_id

    first = MlflowClient().get_run(run(0.5))
    assert first.data.tags[tracking.MODEL] == "models:/thaw-farm/1"
    served = {name: first.data.metrics.pop(name) for name in ("served_megabytes", "served_milliseconds_per_picture")}
    assert all(value > 0 for value in served.values())
    assert first.data.metrics == {"test/accuracy": 0.5, "temperature": 1.25}
    assert first.inputs.dataset_inputs[0].dataset.name == "farm"
    assert "is the champion: there was none" in first.data.tags[tracking.CHAMPION]
    assert first.data.tags[tracking.CHAMPION] in capsys.readouterr().out
    card = tracking.artifact(first.info.run_id, "model_card.md").read_text()
    assert MlflowClient().get_model_version("thaw-farm", "1").description == card
    checkpoint = tracking.find_model("models:/thaw-farm@champion").checkpoint
    facts = json.loads((checkpoint / "calibration.json").read_text())
    assert (facts["temperature"], ".png" in facts["extensions"]) == (1.25, True)

    second = MlflowClient().get_run(run(0.75))
    assert str(MlflowClient().get_model_version_by_alias("thaw-farm", "champion").version) == "2"
    assert "is the new champion" in second.data.tags[tracking.CHAMPION]

    unregistered = MlflowClient().get_run(run(0.9, register_as=""))
    assert tracking.MODEL not in unregistered.data.tags
    assert len(MlflowClient().search_model_versions("name = 'thaw-farm'")) == 2
    assert len(unregistered.outputs.model_outputs) == 1


def test_a_model_of_several_networks_holds_them_all_and_says_so_with_its_size_and_speed(
    tracking_server, tmp_path, capsys
):
    found = []
    for number, size in enumerate((32, 48)):
        torch.manual_seed(number)
        facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, size, "crop", False)
        save_checkpoint(build_network(facts), facts, tmp_path / str(size))
        pixels = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), dtype=np.uint8)
        found.append(EvaluatedNetwork(f"network {number}", tmp_path / str(size), pixels))
    members = pd.DataFrame({"network": ["network 0", "network 1"], "accuracy": [0.7, 0.75], "loss": [0.6, 0.5]})
    evaluation = replace(cats_and_dogs({"test/accuracy": 0.5, "valid/accuracy": 0.8}, temperature=1.5), members=members)
    recipe = Recipe(evaluate=Evaluate(onnx=True, tta_views=2), augment=Augment(flip="sideways", crop=0.7))
    with tracking.open_run("evaluate", {}, {}) as run_id:
        publish(run_id, found, manifest_of(), evaluation, recipe)
    run = MlflowClient().get_run(run_id)
    assert run.data.metrics["onnx_max_difference"] < 1e-4
    said = " ".join(capsys.readouterr().out.split())
    megabytes = run.data.metrics["served_megabytes"]
    assert f"The model holds 2 networks in {megabytes:.0f} MB, and takes" in said
    files = tracking.find_model("models:/thaw-farm/1").checkpoint.rglob("*")
    assert megabytes == pytest.approx(sum(path.stat().st_size for path in files if path.is_file()) / 1e6)
    card = tracking.artifact(run_id, "model_card.md").read_text()
    for words in ("- networks: 2", "- image_px: 32 or 48", "better than each of them", "network 1", "served_megabytes"):
        assert words in card
    classifier = load_classifier(tracking.find_model("models:/thaw-farm/1").checkpoint, torch.device("cpu"))
    assert (len(classifier.members), classifier.sizes_px, classifier.temperature) == (2, (32, 48), 1.5)
    assert classifier.tta == Tta("sideways", 0.7, 2)
    facts = json.loads(tracking.artifact(run_id, "onnx/ensemble.json").read_text())
    assert (facts["members"][1], facts["temperature"]) == ("member_002/model.onnx", 1.5)
    alone = json.loads(tracking.artifact(run_id, "onnx/member_002/preprocessing.json").read_text())
    assert (alone["temperature"], alone["shape"][2]) == (1.0, 48)


@pytest.fixture
def published(tracking_server, tmp_path):
    """Publishes an evaluation of these pictures, and gives the run."""
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", False)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    pixels = np.zeros((6, 32, 32, 3), dtype=np.uint8)

    def run(manifest: Manifest, register_as: str = "auto"):
        recipe = Recipe(evaluate=Evaluate(register_as=register_as, onnx=False))
        with tracking.open_run("evaluate", {}, {}) as run_id:
            publish(run_id, networks(tmp_path, pixels), manifest, cats_and_dogs({"test/accuracy": 0.5}), recipe)
        return MlflowClient().get_run(run_id)

    return run


OTHERS = [f"{row:064x}" for row in range(10, 16)]


def test_another_set_of_the_same_name_goes_to_a_registered_model_of_its_own(published, capsys):
    assert published(manifest_of()).data.tags[tracking.MODEL] == "models:/thaw-farm/1"
    assert published(manifest_of(split=SPLITS[::-1])).data.tags[tracking.MODEL] == "models:/thaw-farm/2"
    capsys.readouterr()
    address = published(manifest_of(hash=OTHERS)).data.tags[tracking.MODEL]
    name = re.fullmatch("models:/(thaw-farm-[0-9a-f]{8})/1", address)[1]
    said = " ".join(capsys.readouterr().out.split())
    assert f"The models thaw-farm in the registry are of other pictures; this one goes to {name}, unless" in said
    assert f"{name} version 1 is the champion: there was none" in said
    card = MlflowClient().get_model_version(name, "1").description
    assert card.startswith(f"{name} tells")
    assert published(manifest_of(hash=OTHERS), "thaw-farm").data.tags[tracking.MODEL] == "models:/thaw-farm/3"


def test_what_the_registry_refuses_is_said_and_the_run_ends_with_its_model(published, monkeypatch, capsys):
    def refused(*_, **__):
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    for call, what in (
        ("create_registered_model", "take a model of the name thaw-farm"),
        ("search_registered_models", "tell which pictures models of the name thaw-farm are of"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, call, refused)
            run = published(manifest_of())
        assert run.info.status == "FINISHED"
        (model,) = run.outputs.model_outputs
        outcome = run.data.tags[tracking.CHAMPION]
        assert outcome.startswith(f"The model registry does not {what} (Permission denied); the model is logged as")
        assert f'mlflow.register_model("models:/{model.model_id}", "thaw-farm")' in outcome
        assert tracking.MODEL not in run.data.tags
        assert what in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("difference", "is_served"), [(0.25, False), (1e-5, True)])
def test_as_onnx_it_comes_with_the_difference_that_was_measured_and_is_served_if_that_is_small(
    tracking_server, tmp_path, monkeypatch, difference, is_served
):
    asked = []

    def export(member, temperature, squares, folder):
        asked.append(len(squares))
        folder.mkdir()
        (folder / "model.onnx").touch()
        return difference

    monkeypatch.setattr(publishing, "export_onnx", export)
    monkeypatch.setattr(publishing, "measure_served", lambda folder, squares: {})
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", False)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    pixels = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(publishing, "CHECKED_PICTURES", 1)
    recipe = Recipe(evaluate=Evaluate(register_as="", onnx=True))
    with tracking.open_run("evaluate", {}, {}) as run_id:
        publish(run_id, networks(tmp_path, pixels), manifest_of(), cats_and_dogs({"test/accuracy": 0.5}), recipe)
    assert asked == [1]
    assert MlflowClient().get_run(run_id).data.metrics["onnx_max_difference"] == difference
    assert tracking.artifact(run_id, "onnx/model.onnx").is_file()
    (model,) = mlflow.search_logged_models(output_format="list")
    assert (tracking.find_model(model.model_uri).checkpoint / "model.onnx").is_file() == is_served


STAGES = (
    "main", "precompute", "lr_find", "train_head", "fine_tune", "resize", "evaluate", "predict", "compare", "sweep",
    "sweep_head",
)  # fmt: skip
LINES = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
MLPROJECT = yaml.safe_load((PROJECT / "MLproject").read_text(encoding="utf-8"))


def test_every_requirement_is_one_exact_version():
    assert LINES
    for line in LINES:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", line), line


def test_no_package_is_named_twice():
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in LINES]
    assert len(names) == len(set(names))


def test_the_conda_environment_has_the_requirements_line_for_line():
    environment = yaml.safe_load((PROJECT / "conda.yaml").read_text(encoding="utf-8"))
    python, pip, pins = environment["dependencies"]
    assert re.fullmatch(r"python=\d+\.\d+(\.\d+)?", python)
    assert pip.split("=")[0] == "pip"
    assert pins == {"pip": LINES}


def test_torch_and_torchvision_are_a_pair_that_was_released_together():
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(LINES)


def test_a_served_model_gets_the_lines_of_its_packages_and_no_more():
    assert set(pinned()) <= set(LINES)
    assert [line.split("==")[0] for line in pinned()] == list(SERVING)
    assert pinned(["torch", "numpy"]) == [
        next(one for one in LINES if one.startswith(f"{name}==")) for name in ("torch", "numpy")
    ]


def test_a_package_that_is_not_pinned_cannot_be_served():
    with pytest.raises(KeyError, match="nonesuch"):
        pinned(["nonesuch"])


def test_the_served_models_file_is_there():
    assert SERVED_MODEL.is_file()


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_an_entry_point_that_starts_it(name):
    command = MLPROJECT["entry_points"][name]["command"]
    assert command.startswith(f"python -m stages {name} ")
    folder = PROJECT / "stages" / ("tools" if name in OPTIONS else "")
    assert (folder / f"{name}.py").is_file()


def test_every_entry_point_starts_the_stage_of_its_name_and_uses_the_parameters_it_declares():
    for name, entry in MLPROJECT["entry_points"].items():
        assert entry["command"].split()[:4] == ["python", "-m", "stages", name]
        assert set(re.findall(r"{(\w+)}", entry["command"])) == set(entry["parameters"])


def test_the_projects_environment_is_a_file_that_exists():
    assert (PROJECT / MLPROJECT["conda_env"]).is_file()


def test_the_default_recipes_of_the_entry_points_exist():
    taking_one = [
        entry["parameters"] for entry in MLPROJECT["entry_points"].values() if "recipe" in entry["parameters"]
    ]
    defaults = {parameters["recipe"]["default"] for parameters in taking_one}
    assert len(taking_one) >= 7
    assert all((PROJECT / default).is_file() for default in defaults - {NOT_GIVEN})
