"""What evaluate says of a network: how it predicts each picture, what it confuses, and whether it over-fits."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.augment import view_matrices
from pipeline.evaluation import evaluation, label_errors
from pipeline.evaluation.diagnosis import diagnose_overfitting
from stages import evaluate, precompute
from tests.stages.chains import run_stage_on
from tests.stages.predicting import probabilities


class Stopped(Exception):
    """Ends evaluate before it predicts."""


@pytest.fixture(scope="module")
def predictions(chain) -> pd.DataFrame:
    return pd.read_csv(chain["evaluate"].files / "predictions.csv")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_table_of_predictions_is_of_the_last_network_and_of_every_picture(chain, predictions, split):
    of_split = predictions[predictions["split"] == split]
    assert of_split["row"].tolist() == chain.manifest.rows(split).tolist()
    columns = [f"probability/{label}" for label in chain.manifest.classes]
    np.testing.assert_allclose(of_split[columns], probabilities(chain, "resize", split), atol=1e-4)


def test_test_pictures_alone_are_predicted_with_their_views_too(predictions):
    assert predictions.groupby("split")["tta_loss"].count().to_dict() == {"test": 21, "train": 0, "valid": 0}
    assert not np.allclose(predictions["tta_loss"].dropna(), predictions.loc[predictions["split"] == "test", "loss"])


@pytest.mark.parametrize(("flip", "views"), [("all", 3), ("none", 4)])
def test_the_views_of_the_test_pictures_are_the_flips_and_corners_of_the_recipe(
    chain, on_chain, monkeypatch, flip, views
):
    given = []

    def stop(*arguments):
        given.extend(one for one in arguments if isinstance(one, torch.Tensor))
        raise Stopped

    monkeypatch.setattr(evaluation, "predict_members", stop)
    with pytest.raises(Stopped):
        evaluate.run(
            chain.other_recipe(augment__flip=flip, evaluate__tta_views=views, reuse="never"), chain["resize"].id
        )
    (matrices,) = given
    torch.testing.assert_close(matrices, view_matrices(flip, 0.8, views))


def test_a_label_that_is_kept_is_not_doubted_and_evaluate_alone_runs_for_it(chain, on_chain, monkeypatch, tmp_path):
    monkeypatch.setattr(label_errors, "find_label_issues", lambda targets, *_, **named: np.full(len(targets), True))
    table = chain.manifest.table
    kept = table.iloc[[chain.manifest.rows("train")[0], chain.manifest.rows("test")[0]]]
    rows = [f"{row.hash},keep,{row.label}" for row in kept.itertuples()]
    (tmp_path / "corrections.csv").write_text("\n".join(["hash,action,label", *rows]))
    recipe = chain.other_recipe(data__corrections=str(tmp_path / "corrections.csv"))
    assert precompute.run(recipe).run_id == chain["precompute"].id
    for name in ("lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize"):
        assert run_stage_on(name, recipe, chain[name].before).id == chain[name].id
    evaluated = run_stage_on("evaluate", recipe, chain["resize"])
    files = ("label_errors", "training_label_errors")
    doubted = [path for name in files for path in pd.read_csv(evaluated.files / f"{name}.csv")["path"]]
    assert sorted([*doubted, *kept["path"]]) == sorted(table["path"])
    assert "kept: 2" in evaluated.run.data.tags["mlflow.note.content"]
    assert run_stage_on("evaluate", recipe, chain["resize"]).id == evaluated.id


def test_the_confusion_that_is_shown_counts_the_test_pictures_by_true_and_predicted_class(chain, predictions):
    files = chain["evaluate"].files
    shown = pd.read_csv(files / "confusion.csv", index_col=0)
    tested = predictions[predictions["split"] == "test"]
    pairs = list(zip(tested["label"], tested["predicted"], strict=True))
    classes = chain.manifest.classes
    assert shown.index.tolist() == shown.columns.tolist() == classes
    assert shown.to_numpy().tolist() == [[pairs.count((true, found)) for found in classes] for true in classes]
    assert (files / "figures" / "confusion.png").exists()
    assert "![True against predicted classes](figures/confusion.png)" in (files / "report.md").read_text()


def test_over_fitting_is_diagnosed_from_the_training_loss_the_validation_loss_and_the_recipe(chain, predictions):
    losses = predictions.groupby("split")["loss"].mean()
    chance_loss, cycles, dropout = math.log(3), 3, 0.3
    assert chain["evaluate"].did.diagnosed == [
        (pytest.approx(losses["train"]), pytest.approx(losses["valid"]), pytest.approx(chance_loss), cycles, dropout)
    ]
    assert chain["evaluate"].metrics["train/plain_loss"] == pytest.approx(losses["train"])
    assert chain["evaluate"].metrics["valid/loss"] == pytest.approx(losses["valid"])


def test_the_verdict_on_over_fitting_is_what_the_run_says_first_and_in_its_report(chain):
    ((*losses, cycles, dropout),) = chain["evaluate"].did.diagnosed
    verdict = diagnose_overfitting(*losses, cycles, dropout)
    tags = chain["evaluate"].run.data.tags
    assert tags["thaw.verdict"] == verdict.name
    assert tags["mlflow.note.content"].startswith(f"**{verdict.name}**: {verdict.words}")


@pytest.mark.parametrize("name", ["train_head", "fine_tune", "resize"])
def test_every_epoch_tells_how_far_the_validation_loss_lies_above_the_training_loss(chain, name):
    epochs = pd.read_csv(chain[name].files / "epochs.csv")
    logged = chain.workplace.client.get_metric_history(chain[name].id, "overfit/gap")
    by_step = {point.step: point.value for point in logged}
    gaps = epochs["valid_loss"] - epochs["train_loss"]
    assert [by_step[step] for step in epochs["step"]] == pytest.approx(gaps.tolist())
