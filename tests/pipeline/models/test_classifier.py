import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.augment import view_matrices
from pipeline.evaluation.calibration import apply_temperature
from pipeline.evaluation.predict import predict
from pipeline.models.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from pipeline.models.classifier import CALIBRATION, Classifier, Tta, answer_table, load_classifier, save_classifier
from pipeline.models.engine.onnx_file import MODEL, export_onnx
from pipeline.system.errors import UserError

CPU = torch.device("cpu")
CLASSES = ["cat", "dog", "hen"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", CLASSES, 8, 0.5, 32, "crop", False)
    network = build_network(facts)
    torch.nn.init.normal_(network.head[-1].weight, std=3)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(network, facts, folder)
    return folder


def load(checkpoint, folder, temperature) -> Classifier:
    save_classifier([checkpoint], temperature, folder / str(temperature))
    return load_classifier(folder / str(temperature), CPU)


@pytest.fixture(scope="module")
def squares():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def as_decoded(squares):
    return [(square,) for square in squares]


def test_the_temperature_divides_the_logits(checkpoint, tmp_path, squares):
    plain, mild = load(checkpoint, tmp_path, 1.0), load(checkpoint, tmp_path, 4.0)
    images = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = plain.members[0].network(images).double()
    np.testing.assert_allclose(plain.probabilities(as_decoded(squares), 8), logits.softmax(1), atol=1e-5)
    np.testing.assert_allclose(mild.probabilities(as_decoded(squares), 8), (logits / 4).softmax(1), atol=1e-5)
    assert np.ptp(logits.numpy(), axis=0).max() > 0.1, "the pictures have to be told apart for this to mean anything"


def test_a_deep_picture_is_decoded_by_the_range_that_the_checkpoint_keeps(checkpoint, tmp_path):
    network, facts = load_checkpoint(checkpoint)
    save_checkpoint(network, replace(facts, ranges={"integer": [1942.0, 2052.0]}), tmp_path / "deep")
    values = np.linspace(1942, 2052, 32 * 32).reshape(32, 32).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(values).save(file, kind)
        square = load(tmp_path / "deep", tmp_path / kind, 1.0).decode(file.getvalue())
        assert np.ptp(square) == 255
        assert np.ptp(load(checkpoint, tmp_path / f"plain {kind}", 1.0).decode(file.getvalue())) <= 1


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_pictures_may_come_one_after_the_other_and_the_batch_size_does_not_matter(
    checkpoint, tmp_path, squares, batch_size
):
    classifier = load(checkpoint, tmp_path, 1.0)
    wanted = classifier.probabilities(as_decoded(squares), 2)
    np.testing.assert_allclose(classifier.probabilities(iter(as_decoded(squares)), batch_size), wanted, atol=1e-6)


def test_of_no_picture_there_is_an_empty_answer(checkpoint, tmp_path):
    probabilities = load(checkpoint, tmp_path, 1.0).probabilities([], 4)
    assert probabilities.shape == (0, 3)
    assert answer_table(CLASSES, probabilities).empty


def test_a_loaded_classifier_is_in_eval_mode_and_keeps_its_temperature(checkpoint, tmp_path):
    classifier = load(checkpoint, tmp_path, 1.25)
    assert not classifier.members[0].network.training
    assert classifier.temperature == 1.25
    assert classifier.checkpoint.classes == CLASSES
    assert json.loads((tmp_path / "1.25" / CALIBRATION).read_text()) == {"temperature": 1.25}


def test_the_answer_names_the_likeliest_class_and_every_probability():
    table = answer_table(CLASSES, np.array([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0]]))
    assert list(table) == ["label", "confidence", "probability/cat", "probability/dog", "probability/hen"]
    assert table["label"].tolist() == ["dog", "cat"], "of two alike, the first class"
    assert table["confidence"].tolist() == [0.7, 0.5]
    assert table["probability/dog"].tolist() == [0.7, 0.5]


def test_the_endings_of_its_recipe_go_with_a_model_and_may_be_unknown(tmp_path):
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", True)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    save_classifier([tmp_path / "checkpoint"], 1.0, tmp_path / "served", [".tga", ".jpg"])
    assert load_classifier(tmp_path / "served", CPU).extensions == (".tga", ".jpg")
    (tmp_path / "served" / "calibration.json").write_text('{"temperature": 1.0}')
    assert load_classifier(tmp_path / "served", CPU).extensions == ()


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Another network for the same classes, which takes pictures of 48 px."""
    torch.manual_seed(1)
    facts = Checkpoint("test_efficientnet", CLASSES, 0, 0.0, 48, "crop", False)
    network = build_network(facts)
    torch.nn.init.normal_(network.head[-1].weight, std=3)
    folder = tmp_path_factory.mktemp("larger")
    save_checkpoint(network, facts, folder)
    return folder


def encoded(count: int) -> list[bytes]:
    """Pictures as PNG files."""
    found = []
    for pixels in np.random.default_rng(2).integers(0, 256, (count, 60, 50, 3), dtype=np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


def predicted(checkpoint, decoded, views=None):
    """What `evaluate` makes of pictures by this network, before calibration."""
    network, _ = load_checkpoint(checkpoint)
    return predict(network, np.stack(decoded), np.arange(len(decoded)), 4, CPU, views)


@pytest.mark.parametrize("with_onnx", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_an_ensemble_answers_with_the_mean_of_its_networks_each_at_its_own_size(
    checkpoint, larger, tmp_path, temperature, with_onnx
):
    tta = Tta("all", 0.8, 10)
    members = save_classifier([checkpoint, larger], temperature, tmp_path / "served", tta=tta)
    classifier = load_classifier(tmp_path / "served", CPU)
    decoded = [classifier.decode(one) for one in encoded(5)]
    if with_onnx:
        for number, (member, folder) in enumerate(zip(classifier.members, members, strict=True)):
            assert export_onnx(member, 1.0, [squares[number] for squares in decoded], folder) < 1e-5
            assert (folder / MODEL).is_file()
        classifier = load_classifier(tmp_path / "served", CPU)
        assert not any(isinstance(member.network, torch.nn.Module) for member in classifier.members)
    assert [square.shape[0] for square in decoded[0]] == [32, 48] == list(classifier.sizes_px)
    for views in (None, view_matrices("all", 0.8, 10)):
        of_each = [predicted(checkpoint, [one[0] for one in decoded], views),
                   predicted(larger, [one[1] for one in decoded], views)]  # fmt: skip
        found = classifier.probabilities(decoded, 2, with_tta=views is not None)
        np.testing.assert_allclose(found, apply_temperature(np.mean(of_each, axis=0), temperature), atol=1e-5)
        assert np.abs(of_each[0] - of_each[1]).max() > 0.01, "the networks have to differ for this to mean anything"
    assert np.abs(found - classifier.probabilities(decoded, 2)).max() > 1e-4, "the views have to matter"


def test_networks_of_one_size_share_a_square(checkpoint, tmp_path):
    save_classifier([checkpoint, checkpoint], 1.0, tmp_path / "served")
    classifier = load_classifier(tmp_path / "served", CPU)
    assert (len(classifier.members), classifier.sizes_px) == (2, (32,))
    assert len(classifier.decode(encoded(1)[0])) == 1


@pytest.mark.parametrize("with_onnx", [False, True])
def test_the_mean_over_the_views_is_what_evaluate_makes_of_them(checkpoint, tmp_path, squares, with_onnx):
    tta = Tta("sideways", 0.9, 4)
    (member,) = save_classifier([checkpoint], 1.7, tmp_path / "served", tta=tta)
    classifier = load_classifier(tmp_path / "served", CPU)
    if with_onnx:
        export_onnx(classifier.members[0], 1.7, list(squares), member)
        classifier = load_classifier(tmp_path / "served", CPU)
    assert classifier.tta == tta
    wanted = apply_temperature(predicted(checkpoint, squares, view_matrices("sideways", 0.9, 4)), 1.7)
    np.testing.assert_allclose(classifier.probabilities(as_decoded(squares), 3, with_tta=True), wanted, atol=1e-5)
    assert np.abs(classifier.probabilities(as_decoded(squares), 3) - wanted).max() > 1e-4, "the views have to matter"


def test_a_model_that_does_not_know_its_views_says_so(checkpoint, tmp_path, squares):
    with pytest.raises(UserError, match="does not know its views for TTA"):
        load(checkpoint, tmp_path, 1.0).probabilities(as_decoded(squares), 4, with_tta=True)
