from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.manifest import Manifest
from pipeline.evaluation.calibration import apply_temperature, choose_temperature
from pipeline.evaluation.ensembles.members import Member
from pipeline.evaluation.evaluation import Evaluation, evaluate
from pipeline.evaluation.metrics import all_metrics, probabilities_of, split_metrics, targets_of
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.network import Network
from pipeline.recipe.picture_sections import Augment
from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Evaluate, Recipe
from pipeline.system.errors import UserError

CPU = torch.device("cpu")
CLASSES = ["<b>hen</b>", "cat & dog", "zebra"]
WITH_TEST = ["train"] * 6 + ["valid"] * 3 + ["test"] * 4
PIXELS = np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), dtype=np.uint8)


def manifest_of(splits: list[str]) -> Manifest:
    """Pictures whose splits are mixed up, as they are in a real manifest."""
    order = np.random.default_rng(3).permutation(len(splits))
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(len(splits))],
            "label": [CLASSES[row % 3] for row in range(len(splits))],
            "split": [splits[row] for row in order],
            "hash": [f"{row:064x}" for row in range(len(splits))],
            "width_px": 32,
            "height_px": 32,
            "mode": "RGB",
        }
    )
    return Manifest("farm", Path("/nowhere"), CLASSES, table, pd.DataFrame(columns=["path", "reason"]))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    network = build_network(Checkpoint("test_resnet", CLASSES, 0, 0.0, 32, "crop", False))
    torch.nn.init.normal_(network.head[-1].weight, std=0.5)
    return network


EPOCHS = pd.DataFrame(
    {"run_id": "r", "stage": "resize", "phase": "", "rate": 0.03, "rate_key": "resize.lr", "epoch": [1, 2, 3],
     "train_loss": [0.5, 0.7, 0.9], "valid_loss": [0.5, 0.7, 0.9], "valid_accuracy": 0.5}
)  # fmt: skip
NO_EPOCHS = EPOCHS.head(0)
ACTIVATIONS = np.random.default_rng(1).normal(size=(13, 64)).astype(np.float16)


RECIPE = Recipe(augment=Augment(flip="sideways", crop=0.9), evaluate=Evaluate(batch_size=4, tta_views=3))


def evaluation_of(
    network: Network,
    manifest: Manifest,
    stored: np.ndarray = ACTIVATIONS,
    epochs: pd.DataFrame = NO_EPOCHS,
    **changed: str,
) -> Evaluation:
    """The evaluation by RECIPE with the keys `changed`, in which "__" stands for a dot."""
    recipe = override_recipe(RECIPE, {key.replace("__", "."): value for key, value in changed.items()})
    return evaluate(recipe, [Member("resize", network, PIXELS)], manifest, stored, epochs, CPU)


@pytest.fixture(scope="module")
def tested(network: Network) -> Evaluation:
    return evaluation_of(network, manifest_of(WITH_TEST))


@pytest.fixture(scope="module")
def validated(network: Network) -> Evaluation:
    return evaluation_of(network, manifest_of(["train"] * 8 + ["valid"] * 5))


def test_the_model_is_evaluated_on_the_test_split_where_there_is_one(tested):
    assert tested.split == "test"
    assert len(tested.predictions.evaluated) == 4
    assert set(tested.predictions.evaluated["split"]) == {"test"}
    assert "on 4 test pictures" in tested.headline()


def test_without_a_test_split_the_model_is_evaluated_on_validation_pictures(validated):
    assert validated.split == "valid"
    assert len(validated.predictions.evaluated) == 5
    assert "on 5 valid pictures" in validated.headline()
    assert not any(name.startswith("test/") for name in validated.metrics)


def test_every_picture_is_predicted_once_and_only_those_evaluated_with_tta(tested):
    assert sorted(tested.predictions.table["row"]) == list(range(13))
    assert tested.predictions.table["loss"].notna().all()
    assert (tested.predictions.table["tta_loss"].notna() == (tested.predictions.table["split"] == "test")).all()
    listed = manifest_of(WITH_TEST).table.loc[tested.predictions.table["row"]]
    assert listed["label"].tolist() == tested.predictions.table["label"].tolist()
    assert listed["split"].tolist() == tested.predictions.table["split"].tolist()


def test_the_metrics_have_these_names(tested, validated):
    trio = ["accuracy", "macro_f1", "loss"]
    further = ["balanced_accuracy", "macro_precision", "macro_recall", "roc_auc", "average_precision", "kappa"]
    every = {*trio, *further, "top_2_accuracy"}
    evaluated = {*every, *(f"tta_{name}" for name in every), "accuracy_low", "accuracy_high"}
    evaluated |= {"ece", "calibrated_ece", "calibrated_loss"}
    train = {f"train/plain_{name}" for name in trio} | {"plain_overfit_gap", "temperature"}
    of_valid = {f"valid/{name}" for name in every}
    assert set(tested.metrics) == train | of_valid | {f"test/{name}" for name in evaluated}
    assert set(validated.metrics) == train | {f"valid/{name}" for name in evaluated}
    assert all(np.isfinite(value) for value in tested.metrics.values())


def test_the_metrics_are_read_from_the_table(tested):
    for split, prefix in (("train", "train/plain_"), ("valid", "valid/"), ("test", "test/")):
        part = tested.predictions.table[tested.predictions.table["split"] == split]
        for name, value in split_metrics(part, CLASSES).items():
            assert tested.metrics[f"{prefix}{name}"] == value
        if split != "train":
            assert tested.metrics[f"{prefix}roc_auc"] == all_metrics(part, CLASSES)["roc_auc"]
    assert tested.metrics["test/tta_loss"] == tested.predictions.evaluated["tta_loss"].mean()
    assert tested.metrics["test/tta_loss"] != tested.metrics["test/loss"]
    gap = tested.metrics["valid/loss"] - tested.metrics["train/plain_loss"]
    assert tested.metrics["plain_overfit_gap"] == pytest.approx(gap)


def test_the_verdict_compares_with_guessing_by_the_class_shares_of_the_training_split():
    manifest = manifest_of(WITH_TEST)

    def chance(table: pd.DataFrame) -> float:
        shares = table["label"].value_counts(normalize=True)
        return float(-(shares * np.log(shares)).sum())

    wanted = chance(manifest.table[manifest.table["split"] == "train"])
    others = [chance(part) for part in (manifest.table, manifest.table.iloc[manifest.rows("valid")])]
    assert all(abs(wanted - other) > 0.01 for other in [*others, np.log(3)]), "else they could not be told apart"
    blank = build_network(Checkpoint("test_resnet", CLASSES, 0, 0.0, 32, "crop", False))
    found = evaluation_of(blank, manifest)
    assert found.verdict.name == "under-fitting"
    assert f"guessing alone gives {wanted:.3f}" in found.verdict.words


def test_the_verdict_is_on_the_loss_of_training_pictures_against_that_of_validation_pictures(tested):
    train_loss, valid_loss = tested.metrics["train/plain_loss"], tested.metrics["valid/loss"]
    assert abs(train_loss - valid_loss) > 0.01, "else they could not be told apart"
    assert f"training loss {train_loss:.3f}, validation loss {valid_loss:.3f}" in tested.verdict.words


def test_the_table_of_splits_has_a_row_for_each_and_one_for_tta(tested):
    table = tested.splits_table
    assert table["split"].tolist() == ["train", "valid", "test", "test, with TTA"]
    assert table["pictures"].tolist() == [6, 3, 4, 4]
    assert table["accuracy"].iloc[3] == tested.metrics["test/tta_accuracy"]
    assert table["loss"].iloc[2] == tested.metrics["test/loss"]


def test_the_temperature_is_fitted_on_validation_pictures_alone(tested):
    valid = tested.predictions.table[tested.predictions.table["split"] == "valid"]
    wanted = choose_temperature(probabilities_of(valid, CLASSES), targets_of(valid, CLASSES))
    assert (tested.predictions.temperature, tested.predictions.uncalibrated) == wanted
    assert tested.metrics["temperature"] == wanted[0]
    calibrated = apply_temperature(probabilities_of(tested.predictions.evaluated, CLASSES), wanted[0])
    of_label = calibrated[np.arange(4), targets_of(tested.predictions.evaluated, CLASSES)]
    assert tested.metrics["test/calibrated_loss"] == pytest.approx(-np.log(of_label).mean())


def test_the_activations_kept_are_those_of_the_validation_pictures_in_the_tables_order(tested, network):
    rows = tested.predictions.table.loc[tested.predictions.table["split"] == "valid", "row"]
    images = torch.from_numpy(PIXELS[rows]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        wanted = network.eval().activations(images).numpy()
    np.testing.assert_allclose(tested.valid_activations, wanted, atol=0.02)


def test_tta_stands_beside_plain_for_every_metric(tested):
    table = tested.tta_table.set_index("metric")
    assert table.loc["macro f1"].tolist() == [tested.metrics["test/macro_f1"], tested.metrics["test/tta_macro_f1"]]
    assert {"accuracy", "loss", "roc auc", "kappa", "top 2 accuracy"} <= set(table.index)


def test_a_rate_that_was_too_high_and_a_twin_in_training_join_the_verdicts(network):
    manifest = manifest_of(WITH_TEST)
    stored = ACTIVATIONS.copy()
    test_row, train_row = manifest.rows("test")[0], manifest.rows("train")[0]
    stored[test_row] = stored[train_row]
    found = evaluation_of(network, manifest, stored=stored, epochs=EPOCHS)
    assert {"leakage", "too high a rate", "too few pictures"} <= {one.name for one in found.verdicts}
    assert found.near_duplicates[["row", "twin_row"]].to_numpy().tolist() == [[test_row, train_row]]
    rest = found.predictions.evaluated[found.predictions.evaluated["row"] != test_row]
    without = (rest["label"] == rest["predicted"]).mean()
    (leakage,) = [one for one in found.verdicts if one.name == "leakage"]
    assert leakage.words.startswith("1 of 4 test pictures (25.0%)")
    assert f"on the others {without:.4f}" in leakage.words


def test_a_twin_that_was_not_trained_on_is_no_leakage(network):
    manifest = manifest_of(WITH_TEST)
    stored = ACTIVATIONS.copy()
    stored[manifest.rows("test")[0]] = stored[manifest.rows("valid")[0]]
    found = evaluation_of(network, manifest, stored=stored)
    assert len(found.near_duplicates) == 1
    assert "leakage" not in {one.name for one in found.verdicts}


def test_what_is_in_order_is_not_reported(tested):
    assert {one.name for one in tested.verdicts} == {"too few pictures"}
    assert tested.near_duplicates.empty


def test_operating_points_are_those_of_the_positive_class_on_calibrated_probabilities(network, tested):
    assert tested.predictions.operating_points.empty
    found = evaluation_of(network, manifest_of(WITH_TEST), evaluate__positive_class="zebra").predictions
    calibrated = apply_temperature(probabilities_of(found.evaluated, CLASSES), found.temperature)[:, 2]
    for point in found.operating_points.to_dict("records"):
        assert point["flagged"] == (calibrated >= point["threshold"]).mean()


def test_a_positive_class_that_is_none_is_reported_before_anything_is_predicted():
    with pytest.raises(UserError, match=r"evaluate\.positive_class is cow"):
        evaluation_of(None, manifest_of(WITH_TEST), evaluate__positive_class="cow")


def test_label_errors_are_held_out_pictures(tested):
    assert set(tested.label_errors["split"]) <= {"valid", "test"}
    assert tested.training_label_errors is None


def test_those_of_training_pictures_are_found_by_what_is_out_of_fold(network):
    manifest = manifest_of(["train"] * 9 + ["valid"] * 4)
    rows = manifest.rows("train")
    out_of_fold = np.full((9, 3), 0.02) + 0.94 * np.eye(3)[manifest.targets[rows]]
    out_of_fold[4] = np.roll(out_of_fold[4], 1)
    found = evaluate(RECIPE, [Member("resize", network, PIXELS)], manifest, ACTIVATIONS, NO_EPOCHS, CPU, out_of_fold)
    (suspect,) = found.training_label_errors.to_dict("records")
    assert (suspect["row"], suspect["split"]) == (rows[4], "train")
    assert suspect["suggested"] == CLASSES[(manifest.targets[rows[4]] + 1) % 3]
