import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.models import checkpoint as checkpoints
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.classifier import load_classifier, save_classifier
from pipeline.models.engine.onnx_file import FACTS, MODEL, export_onnx


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A grey classifier, pictures for it, the folder of its export, and the difference that was told."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", ["cat", "dog", "hen"], 8, 0.5, 32, "crop", True)
    network = build_network(facts)
    torch.nn.init.normal_(network.head[-1].weight, std=3)
    save_checkpoint(network, facts, folder / "checkpoint")
    save_classifier([folder / "checkpoint"], 1.7, folder / "served")
    classifier = load_classifier(folder / "served", torch.device("cpu"))
    squares = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE", str(folder / "cache"))
        difference = export_onnx(classifier.members[0], 1.7, list(squares), folder / "onnx")
        return classifier, squares, folder / "onnx", difference


def as_decoded(squares):
    return [(square,) for square in squares]


def test_the_file_fed_as_its_facts_say_gives_the_calibrated_probabilities_of_any_number_of_pictures(exported):
    classifier, squares, folder, _ = exported
    facts = json.loads((folder / FACTS).read_text())
    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    images = (squares / 255).astype(np.float32).transpose(0, 3, 1, 2)
    assert list(images.shape[1:]) == facts["shape"][1:]
    for count in (1, 2, 5):
        (found,) = session.run([facts["output"]], {facts["input"]: images[:count]})
        np.testing.assert_allclose(found, classifier.probabilities(as_decoded(squares[:count]), 8), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-2, "the pictures have to be told apart for this to mean anything"
    assert facts["classes"] == ["cat", "dog", "hen"]


def test_the_difference_told_is_small_but_measured(exported):
    classifier, squares, folder, difference = exported
    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": (squares / np.float32(255)).transpose(0, 3, 1, 2)})
    assert 0 < difference < 1e-5
    assert difference == pytest.approx(np.abs(found - classifier.probabilities(as_decoded(squares), 8)).max(), rel=0.5)


def test_the_file_is_whole_by_itself(exported):
    folder = exported[2]
    assert {path.name for path in folder.iterdir()} == {MODEL, FACTS}


def test_the_classifier_is_left_as_it_was(exported):
    classifier = exported[0]
    assert not classifier.members[0].network.training
    assert next(classifier.members[0].network.parameters()).device == classifier.device


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_is_exported_by_the_newer_exporter(tmp_path, exported, monkeypatch):
    classifier, squares, *_ = exported
    newer, tracing = torch.onnx.export, []

    def export(*given, dynamo, **named):
        if dynamo:
            return newer(*given, dynamo=True, **named)
        tracing.append(given)
        raise torch.onnx.errors.UnsupportedOperatorError("aten::odd", 20, None)

    monkeypatch.setattr(torch.onnx, "export", export)
    assert 0 < export_onnx(classifier.members[0], 1.7, list(squares), tmp_path / "onnx") < 1e-5
    assert len(tracing) == 1


@pytest.mark.parametrize("one_by_one", [True, False])
def test_beside_a_classifier_it_answers_on_a_cpu_without_a_network(tmp_path, exported, monkeypatch, one_by_one):
    classifier, squares, onnx_folder, _ = exported
    served = tmp_path / "served"
    shutil.copytree(onnx_folder.parent / "served", served)
    shutil.copy(onnx_folder / MODEL, served)

    def refuse(folder):
        raise AssertionError("a network is built")

    monkeypatch.setattr(checkpoints, "load_checkpoint", refuse)
    found = load_classifier(served, torch.device("cpu"), one_by_one)
    np.testing.assert_allclose(
        found.probabilities(as_decoded(squares), 4), classifier.probabilities(as_decoded(squares), 8), atol=1e-5
    )
    np.testing.assert_allclose(found.probabilities(as_decoded(squares), 4).sum(1), 1, atol=1e-12)
    assert (found.checkpoint, found.temperature, found.extensions) == (classifier.checkpoint, 1.7, ())
