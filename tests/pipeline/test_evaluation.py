import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.augment import view_matrices
from pipeline.checkpoint import Checkpoint, build_network
from pipeline.evaluation import Evaluation, evaluate, write_evaluation
from pipeline.manifest import Manifest
from pipeline.metrics import split_metrics
from pipeline.network import Network

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


def look(network: Network, splits: list[str]) -> Evaluation:
    return evaluate(network, manifest_of(splits), PIXELS, view_matrices("sideways", 0.9, 3), 4, CPU)


@pytest.fixture(scope="module")
def tested(network: Network) -> Evaluation:
    return look(network, WITH_TEST)


@pytest.fixture(scope="module")
def validated(network: Network) -> Evaluation:
    return look(network, ["train"] * 8 + ["valid"] * 5)


@pytest.fixture(scope="module")
def folder(tested: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is written about `tested`."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(tested, PIXELS, 3, folder)
    return folder


def test_the_model_is_judged_on_the_test_split_where_there_is_one(tested):
    assert tested.split == "test"
    assert len(tested.judged) == 4
    assert set(tested.judged["split"]) == {"test"}
    assert "on 4 test pictures" in tested.headline()
    assert "no test split" not in tested.summary()


def test_without_a_test_split_the_model_is_judged_on_validation_pictures_and_this_is_said(validated):
    assert validated.split == "valid"
    assert len(validated.judged) == 5
    assert "on 5 valid pictures" in validated.headline()
    assert "There is no test split: the model is judged on validation pictures." in validated.summary()
    assert not any(name.startswith("test/") for name in validated.metrics)


def test_every_picture_is_predicted_once_and_only_those_judged_with_tta(tested):
    assert sorted(tested.table["row"]) == list(range(13))
    assert tested.table["loss"].notna().all()
    assert (tested.table["tta_loss"].notna() == (tested.table["split"] == "test")).all()
    listed = manifest_of(WITH_TEST).table.loc[tested.table["row"]]
    assert listed["label"].tolist() == tested.table["label"].tolist()
    assert listed["split"].tolist() == tested.table["split"].tolist()


def test_the_metrics_have_these_names(tested, validated):
    plain = ["accuracy", "macro_f1", "loss"]
    train = {f"train/plain_{name}" for name in plain}
    tta = {f"tta_{name}" for name in plain}
    of_test = {f"test/{name}" for name in {*plain, *tta}}
    of_valid = {f"valid/{name}" for name in plain}
    assert set(tested.metrics) == train | of_test | of_valid | {"overfit/plain_gap"}
    assert set(validated.metrics) == train | of_valid | {f"valid/{name}" for name in tta} | {"overfit/plain_gap"}


def test_the_metrics_are_read_from_the_table(tested):
    for split, place in (("train", "train/plain_"), ("valid", "valid/"), ("test", "test/")):
        part = tested.table[tested.table["split"] == split]
        for name, value in split_metrics(part, CLASSES).items():
            assert tested.metrics[f"{place}{name}"] == value
    assert tested.metrics["test/tta_loss"] == tested.judged["tta_loss"].mean()
    assert tested.metrics["test/tta_loss"] != tested.metrics["test/loss"]
    gap = tested.metrics["valid/loss"] - tested.metrics["train/plain_loss"]
    assert tested.metrics["overfit/plain_gap"] == pytest.approx(gap)


def test_the_verdict_compares_with_guessing_by_the_class_shares_of_the_training_split():
    manifest = manifest_of(WITH_TEST)

    def chance(table: pd.DataFrame) -> float:
        shares = table["label"].value_counts(normalize=True)
        return float(-(shares * np.log(shares)).sum())

    wanted = chance(manifest.table[manifest.table["split"] == "train"])
    others = [chance(part) for part in (manifest.table, manifest.table.iloc[manifest.rows("valid")])]
    assert all(abs(wanted - other) > 0.01 for other in [*others, np.log(3)]), "else they could not be told apart"
    blank = build_network(Checkpoint("test_resnet", CLASSES, 0, 0.0, 32, "crop", False))
    found = evaluate(blank, manifest, PIXELS, view_matrices("none", 1.0, 1), 4, CPU)
    assert found.verdict.name == "under-fitting"
    assert f"guessing alone gives {wanted:.3f}" in found.verdict.words


def test_the_table_of_splits_has_a_row_for_each_and_one_for_tta(tested):
    table = tested.splits_table()
    assert table["split"].tolist() == ["train", "valid", "test", "test, with TTA"]
    assert table["pictures"].tolist() == [6, 3, 4, 4]
    assert table["accuracy"].iloc[3] == tested.metrics["test/tta_accuracy"]
    assert table["loss"].iloc[2] == tested.metrics["test/loss"]


def test_the_summary_holds_the_headline_the_verdict_and_both_tables(tested):
    summary = tested.summary()
    assert summary.startswith(tested.headline())
    assert tested.verdict.words in summary
    assert "| test, with TTA |" in summary
    assert "| zebra |" in summary


def test_these_files_are_written(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {"figures/confusion.png", "figures/top_losses.png"}
    assert found == {"predictions.csv", "confusion.csv", "classes.csv", "report.html", *figures}


def test_the_written_predictions_are_the_table(folder, tested):
    table = tested.table.reset_index(drop=True).rename_axis(None)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "predictions.csv"), table, check_dtype=False)


def test_the_written_confusion_and_classes_count_the_pictures_judged(folder, tested):
    counts = pd.read_csv(folder / "confusion.csv", index_col=0)
    assert counts.index.tolist() == counts.columns.tolist() == CLASSES
    assert counts.to_numpy().sum() == len(tested.judged)
    assert np.trace(counts.to_numpy()) == (tested.judged["label"] == tested.judged["predicted"]).sum()
    classes = pd.read_csv(folder / "classes.csv")
    assert classes["class"].tolist() == CLASSES
    assert classes["pictures"].sum() == len(tested.judged)


def test_the_figures_are_pictures(folder):
    for path in (folder / "figures").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 200


def test_the_report_holds_all_it_shows_and_asks_for_nothing_elsewhere(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 2
    without_images = re.sub(r"base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", without_images)


def test_the_report_says_the_figures_and_the_verdict_and_escapes_class_names(folder, tested):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert tested.headline() in page
    assert tested.verdict.words in page
    assert "&lt;b&gt;hen&lt;/b&gt;" in page
    assert "cat &amp; dog" in page
    assert "<b>" not in page


def test_more_top_losses_than_pictures_is_no_error(validated, tmp_path):
    write_evaluation(validated, PIXELS, 100, tmp_path)
    assert (tmp_path / "figures" / "top_losses.png").is_file()


def test_the_pictures_with_the_highest_losses_of_the_split_judged_are_shown(tested, tmp_path, monkeypatch):
    shown = {}

    def keep(pixels, captions, title):
        shown.update(pixels=pixels, captions=captions, title=title)
        return original(pixels, captions, title)

    original = write_evaluation.__globals__["pictures_figure"]
    monkeypatch.setitem(write_evaluation.__globals__, "pictures_figure", keep)
    write_evaluation(tested, PIXELS, 2, tmp_path)
    worst = tested.judged.sort_values("loss", ascending=False).head(2)
    np.testing.assert_array_equal(np.stack(shown["pixels"]), PIXELS[worst["row"]])
    assert all(label in caption for label, caption in zip(worst["label"], shown["captions"], strict=True))
    assert "test split" in shown["title"]
