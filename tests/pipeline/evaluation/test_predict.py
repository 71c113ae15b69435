import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.augment import view_matrices
from pipeline.evaluation.predict import SMALLEST, losses, predict, predict_with_activations, predictions_table
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.engine.passes import SharedPass, frozen_network
from pipeline.models.network import Network
from tests.several_processes import run_led

CPU = torch.device("cpu")
CLASSES = ["cat", "dog", "hen"]
FACTS = Checkpoint("test_resnet", CLASSES, 8, 0.5, 32, "crop", False)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    network = build_network(FACTS)
    torch.nn.init.normal_(network.head[-1].weight, std=3)
    return network


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def all_rows(pixels: np.ndarray) -> np.ndarray:
    return np.arange(len(pixels), dtype=np.int64)


def test_each_row_holds_probabilities_that_add_up_to_one(network, pixels):
    found = predict(network, pixels, all_rows(pixels), 4, CPU)
    assert found.shape == (7, 3)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert np.ptp(found, axis=0).min() > 1e-3, "the pictures have to be told apart for these tests to mean anything"


def test_predictions_come_in_the_order_of_the_rows_asked_for(network, pixels):
    found = predict(network, pixels, all_rows(pixels), 2, CPU)
    picked = np.array([5, 0, 3, 3], dtype=np.int64)
    np.testing.assert_allclose(predict(network, pixels, picked, 2, CPU), found[picked], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_batch_size_does_not_matter(network, pixels, batch_size):
    wanted = predict(network, pixels, all_rows(pixels), 2, CPU)
    np.testing.assert_allclose(predict(network, pixels, all_rows(pixels), batch_size, CPU), wanted, atol=1e-6)


def test_a_network_that_was_training_predicts_without_dropout_or_batch_statistics(network, pixels):
    wanted = predict(network.eval(), pixels, all_rows(pixels), 7, CPU)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = predict(network.train(), pixels, all_rows(pixels), 7, CPU)
    np.testing.assert_array_equal(found, wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_probabilities_are_the_softmax_of_the_logits(network, pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = network.eval()(images).double().numpy()
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(predict(network, pixels, all_rows(pixels), 7, CPU), wanted, atol=1e-5)


def test_two_views_are_the_mean_of_a_picture_and_its_mirror_image(network, pixels):
    def mean_of(variants: list[np.ndarray]) -> np.ndarray:
        return np.mean([predict(network, one.copy(), all_rows(one), 7, CPU) for one in variants], axis=0)

    views = view_matrices("sideways", 1.0, 8)
    assert len(views) == 2
    found = predict(network, pixels, all_rows(pixels), 3, CPU, views)
    np.testing.assert_allclose(found, mean_of([pixels, pixels[:, :, ::-1]]), atol=1e-4)
    assert np.abs(found - mean_of([pixels])).max() > 1e-3


def test_eight_views_are_the_mean_over_all_flips_and_quarter_turns(network, pixels):
    turned = [np.rot90(pixels, turns, (1, 2)) for turns in range(4)]
    variants = turned + [one[:, :, ::-1] for one in turned]
    wanted = np.mean([predict(network, one.copy(), all_rows(one), 7, CPU) for one in variants], axis=0)
    found = predict(network, pixels, all_rows(pixels), 7, CPU, view_matrices("all", 1.0, 8))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_all_views_of_a_picture_go_through_the_network_in_one_batch(network, pixels):
    sizes = []
    hook = network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    predict(network, pixels, all_rows(pixels), 8, CPU, view_matrices("all", 1.0, 4))
    hook.remove()
    assert sizes == [8, 8, 8, 4]


def test_one_channel_is_enough_for_grey_pictures(network, pixels):
    grey = pixels[..., :1]
    found = predict(network, grey, all_rows(grey), 4, CPU)
    np.testing.assert_allclose(found, predict(network, grey.repeat(3, -1), all_rows(grey), 4, CPU), atol=1e-6)


def test_activations_come_from_the_same_pass_and_change_no_prediction(network, pixels):
    picked = np.array([5, 0, 3], dtype=np.int64)
    found, activations = predict_with_activations(network.train(), pixels, picked, 2, CPU)
    np.testing.assert_array_equal(found, predict(network, pixels, picked, 2, CPU))
    assert activations.shape == (3, network.width)
    assert activations.dtype == np.float16
    with torch.no_grad():
        logits = network.eval().head(torch.from_numpy(activations).float())
    np.testing.assert_allclose(logits.softmax(1).numpy(), found, atol=1e-2)


def test_of_some_rows_alone_the_activations_are_kept(network, pixels):
    rows = all_rows(pixels)
    found, every = predict_with_activations(network, pixels, rows, 2, CPU)
    again, some = predict_with_activations(network, pixels, rows, 2, CPU, kept=np.array([3, 0, 4], dtype=np.int64))
    np.testing.assert_array_equal(found, again)
    np.testing.assert_array_equal(some, every[[0, 3, 4]])
    assert predict_with_activations(network, pixels, rows, 2, CPU, kept=rows[:0])[1].shape == (0, network.width)


def test_a_probability_of_zero_has_a_finite_loss():
    np.testing.assert_allclose(losses(np.array([1.0, 0.5, 0.0])), [0, -np.log(0.5), -np.log(SMALLEST)], atol=1e-12)


def test_a_table_of_very_many_classes_is_made_without_a_warning():
    names = [f"class {number}" for number in range(300)]
    rows = pd.DataFrame({"path": ["a"], "label": names[:1], "split": ["test"], "hash": "x"})
    even = np.full((1, 300), 1 / 300)
    with warnings.catch_warnings(action="error"):
        assert predictions_table(rows, names, even, even).shape == (1, 5 + 2 * 303)


ROWS = pd.DataFrame(
    {"path": ["d", "a", "c"], "label": ["dog", "cat", "hen"], "split": ["train", "test", "test"], "hash": "x"},
    index=[4, 0, 2],
)
PLAIN = np.array([[0.2, 0.7, 0.1], [0.5, 0.5, 0.0], [0.6, 0.4, 0.0]])
TTA = np.array([[np.nan] * 3, [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])


def test_the_table_has_these_columns_in_this_order():
    numbers = ["predicted", "loss", "confidence", "probability/cat", "probability/dog", "probability/hen"]
    wanted = ["row", "path", "hash", "split", "label", *numbers, *(f"tta_{name}" for name in numbers)]
    assert list(predictions_table(ROWS, CLASSES, PLAIN, TTA)) == wanted


def test_the_table_holds_the_manifests_rows_and_what_was_predicted_for_each():
    table = predictions_table(ROWS, CLASSES, PLAIN, TTA)
    assert table["row"].tolist() == [4, 0, 2]
    assert table["path"].tolist() == ["d", "a", "c"]
    assert table["predicted"].tolist() == ["dog", "cat", "cat"], "of two alike, the first class"
    assert table["confidence"].tolist() == [0.7, 0.5, 0.6]
    assert table["probability/dog"].tolist() == [0.7, 0.5, 0.4]
    assert table["tta_predicted"].tolist()[1:] == ["dog", "hen"]
    assert table["tta_probability/hen"].tolist()[1:] == [0.0, 1.0]


def test_the_loss_is_minus_the_log_of_the_true_labels_probability_and_stays_finite():
    table = predictions_table(ROWS, CLASSES, PLAIN, TTA)
    np.testing.assert_allclose(table["loss"], [-np.log(0.7), -np.log(0.5), -np.log(SMALLEST)])
    np.testing.assert_allclose(table["tta_loss"].iloc[1:], [-np.log(0.1), 0.0], atol=1e-12)


def test_a_picture_without_tta_has_no_number_there():
    table = predictions_table(ROWS, CLASSES, PLAIN, TTA)
    numbers = ["tta_loss", "tta_confidence", *(f"tta_probability/{label}" for label in CLASSES)]
    assert table[numbers].iloc[0].isna().all()
    assert table[numbers].iloc[1:].notna().all().all()


def test_the_order_of_the_classes_is_the_order_of_the_networks_outputs():
    table = predictions_table(ROWS, ["hen", "dog", "cat"], PLAIN, TTA)
    assert table["predicted"].tolist() == ["dog", "hen", "hen"]
    np.testing.assert_allclose(table["loss"], [-np.log(0.7), -np.log(SMALLEST), -np.log(0.6)])


def found_by(network: Network, pixels: np.ndarray, processes: int) -> list[np.ndarray]:
    """Predictions of all kinds, of as many rows as there are processes, more, and fewer."""
    frozen = frozen_network(network, FACTS, pixels, len(pixels))
    assert isinstance(frozen, SharedPass) == (processes > 1)
    rows, views = np.array([6, 2, 0, 5, 3], dtype=np.int64), view_matrices("sideways", 0.9, 3)
    probabilities, activations = predict_with_activations(frozen, pixels, rows, 2, CPU)
    some, kept = predict_with_activations(frozen, pixels, rows, 2, CPU, kept=np.array([3, 6], dtype=np.int64))
    return [
        predict(frozen, pixels, rows, 2, CPU),
        predict(frozen, pixels, rows[:1], 2, CPU),
        predict(frozen, pixels, rows, 2, CPU, views),
        *(probabilities, activations, some, kept),
    ]


def lead(folder: Path, network: Network, pixels: np.ndarray) -> None:
    np.savez(folder / "found.npz", *found_by(network, pixels, 3))


def test_several_processes_predict_what_one_does(network, pixels, tmp_path):
    run_led(lead, tmp_path, network, pixels, processes=3, cache=tmp_path / "cache")
    expected = found_by(network, pixels, 1)
    with np.load(tmp_path / "found.npz") as found:
        for name, wanted in zip(found.files, expected, strict=True):
            assert found[name].dtype == wanted.dtype
            np.testing.assert_allclose(found[name], wanted, atol=1e-3 if wanted.dtype == np.float16 else 1e-6)
