from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.augment import view_matrices
from pipeline.data.manifest import Manifest
from pipeline.evaluation.ensembles.gain import accuracy_and_loss
from pipeline.evaluation.ensembles.members import Member, predict_members
from pipeline.evaluation.predict import predict, predict_with_activations
from pipeline.models.checkpoint import Checkpoint, build_network

CPU = torch.device("cpu")
CLASSES = ["cat", "dog", "hen"]
SPLITS = ["test", "train", "valid", "train", "valid", "test", "train", "valid"]
VIEWS = view_matrices("all", 0.8, 4)


@pytest.fixture(scope="module")
def members() -> list[Member]:
    """Two networks, of pictures of 32 and of 48 px."""
    found = []
    for seed, size in enumerate((32, 48)):
        torch.manual_seed(seed)
        network = build_network(Checkpoint("test_resnet", CLASSES, 0, 0.0, size, "crop", False))
        torch.nn.init.normal_(network.head[-1].weight, std=3)
        pixels = np.random.default_rng(seed).integers(0, 256, (len(SPLITS), size, size, 3), dtype=np.uint8)
        found.append(Member(f"network of {size} px", network, pixels))
    return found


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    table = pd.DataFrame({"path": [f"{row}.png" for row in range(8)], "split": SPLITS, "hash": "x"})
    table["label"] = [CLASSES[row % 3] for row in range(8)]
    return Manifest("farm", Path("/nowhere"), CLASSES, table, pd.DataFrame(columns=["path", "reason"]))


def of_each(members: list[Member], rows: list[int], views: torch.Tensor | None = None) -> list[np.ndarray]:
    return [predict(one.network, one.pixels, np.array(rows), 4, CPU, views) for one in members]


def probabilities(table: pd.DataFrame, prefix: str = "") -> np.ndarray:
    return table[[f"{prefix}probability/{label}" for label in CLASSES]].to_numpy()


def predict_all(members: list[Member], manifest: Manifest):
    return predict_members(iter(members), manifest, VIEWS, 4, CPU, "test", np.array([3, 6]))


def test_the_table_has_the_mean_of_the_probabilities_of_all_pictures(members, manifest):
    table = predict_all(members, manifest).table
    assert table["row"].tolist() == [1, 3, 6, 2, 4, 7, 0, 5]
    one, other = of_each(members, table["row"].tolist())
    np.testing.assert_allclose(probabilities(table), (one + other) / 2, atol=1e-4)
    assert np.abs(one - other).max() > 0.01, "the networks have to differ for this to mean anything"


def test_only_the_split_evaluated_is_seen_in_all_views(members, manifest):
    table = predict_all(members, manifest).table
    is_test = table["split"] == "test"
    assert np.isnan(probabilities(table[~is_test], "tta_")).all()
    expected = np.mean(of_each(members, [0, 5], VIEWS), axis=0)
    np.testing.assert_allclose(probabilities(table[is_test], "tta_"), expected, atol=1e-4)


def test_each_network_is_validated_by_itself(members, manifest):
    found = predict_all(members, manifest).members
    assert found["network"].tolist() == ["network of 32 px", "network of 48 px"]
    expected = [accuracy_and_loss(one, manifest.targets[[2, 4, 7]]) for one in of_each(members, [2, 4, 7])]
    np.testing.assert_allclose(found[["accuracy", "loss"]], expected, atol=1e-4)


def test_activations_are_the_first_networks(members, manifest):
    found = predict_all(members, manifest)
    first = members[0]
    for rows, activations in (([2, 4, 7], found.valid_activations), ([3, 6], found.kept_activations)):
        _, expected = predict_with_activations(first.network, first.pixels, np.array(rows), 4, CPU)
        np.testing.assert_allclose(activations, expected, atol=1e-3)


def test_one_network_is_its_own_mean_to_the_last_bit(members, manifest):
    table = predict_all(members[:1], manifest).table
    valid = table[table["split"] == "valid"]
    np.testing.assert_array_equal(probabilities(valid), of_each(members[:1], [2, 4, 7])[0])
