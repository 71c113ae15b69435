import html
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation.diagnosis import Verdict
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.grad_cam import explain_predictions
from pipeline.recipe.presets import command_line, default_recipe
from pipeline.recipe.recipe_file import read_recipe
from pipeline.reports.evaluation_report import (
    advice_parts,
    calibration_parts,
    ensemble_parts,
    failure_parts,
    first_advice,
    first_parts,
    overfitting_parts,
    summarize,
    threshold_parts,
    write_evaluation,
)
from pipeline.reports.page import Advice, Figures, Paragraph
from pipeline.reports.pictures import top_losses
from tests.pipeline.small_evaluations import CPU, ODD, small_evaluation, small_network

SPLITS = ["train"] * 10 + ["valid"] * 10 + ["test"] * 15
FIGURES = {
    "confusion", "confusion_shares", "top_losses", "confidently_wrong", "most_uncertain", "some_right", "learning",
    "reliability", "label_errors", "training_losses", "near_duplicates", "curves", "embedding",
}  # fmt: skip
TABLES = {
    "predictions", "confusion", "confusion_shares", "confused_pairs", "classes", "label_errors", "near_duplicates",
}  # fmt: skip


def write(evaluation: Evaluation, network, pixels: np.ndarray, folder: Path, shown: int = 3) -> Path:
    write_evaluation(
        evaluation, network, pixels, shown, partial(command_line, read_recipe(default_recipe("elpv"))), CPU, folder
    )
    return folder


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> tuple[Evaluation, np.ndarray, Path]:
    """An evaluation of pictures whose classes have odd names, its pixels, and what was written about it."""
    network = small_network(ODD)
    evaluation, pixels = small_evaluation(network, ODD, SPLITS)
    return evaluation, pixels, write(evaluation, network, pixels, tmp_path_factory.mktemp("odd"))


def without_images(page: str) -> str:
    return re.sub(r"base64,[\w+/=]+", "", page)


def test_these_files_are_written(odd):
    found = {str(path.relative_to(odd[2])) for path in odd[2].rglob("*") if path.is_file()}
    tables = {f"{name}.csv" for name in TABLES}
    assert found == tables | {"report.html", "report.md"} | {f"figures/{name}.png" for name in FIGURES}


def test_the_written_predictions_are_the_table(odd):
    evaluation, _, folder = odd
    table = evaluation.predictions.table.reset_index(drop=True).rename_axis(None)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "predictions.csv"), table, check_dtype=False)


def test_the_written_confusion_and_classes_count_the_pictures_evaluated(odd):
    evaluation, _, folder = odd
    counts = pd.read_csv(folder / "confusion.csv", index_col=0)
    assert counts.index.tolist() == counts.columns.tolist() == ODD
    evaluated = evaluation.predictions.evaluated
    assert counts.to_numpy().sum() == len(evaluated)
    assert np.trace(counts.to_numpy()) == (evaluated["label"] == evaluated["predicted"]).sum()
    classes = pd.read_csv(folder / "classes.csv")
    assert classes["class"].tolist() == ODD
    assert classes["pictures"].sum() == len(evaluated)


def test_the_figures_are_pictures(odd):
    for path in (odd[2] / "figures").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 70


def test_the_report_holds_all_it_shows_and_asks_for_nothing_elsewhere(odd):
    page = (odd[2] / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/') == page.count("<img")
    shown_as_figures = FIGURES - {"top_losses", "confidently_wrong", "most_uncertain", "some_right"}
    shown_as_figures -= {"label_errors", "training_losses", "near_duplicates"}
    assert page.count('src="data:image/png;base64,') == len(shown_as_figures)
    assert not re.search(r"https?:|//|<script src|<link|@import|url\(", without_images(page))


def test_the_report_says_the_headline_every_verdict_and_its_command_and_escapes_class_names(odd):
    evaluation, _, folder = odd
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert first_parts(evaluation)[0].text in page
    assert all(html.escape(one.words) in page for one in evaluation.verdicts)
    assert "&lt;b&gt;hen&lt;/b&gt;" in page
    assert "<b>hen" not in page
    assert "mlflow run . --env-manager local -P fine_tune.cycles=2" in page


def test_a_reader_finds_what_to_do_next_before_where_it_fails_and_this_before_the_rest(odd):
    headings = re.findall(r"<h2 id=.*?>(.+?)</h2>", (odd[2] / "report.html").read_text(encoding="utf-8"))
    assert headings[:4] == ["What to do next", "Where it fails", "Over-fitting", "Calibration"]
    assert len(headings) == 9


def test_the_markdown_report_links_figures_that_are_there(odd):
    text = (odd[2] / "report.md").read_text(encoding="utf-8")
    paths = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert {Path(path).stem for path in paths} == FIGURES - ({"label_errors"} if odd[0].label_errors.empty else set())
    assert all((odd[2] / path).is_file() for path in paths)


def test_two_classes_have_operating_points_and_no_second_list_of_the_confidently_wrong(tmp_path):
    network = small_network(ODD[:2])
    evaluation, pixels = small_evaluation(network, ODD[:2], SPLITS)
    page = (write(evaluation, network, pixels, tmp_path) / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "operating_points.csv").is_file()
    assert "Operating points" in page
    assert "the most confidently wrong are the highest losses above" in page


def test_one_class_alone_in_the_test_split_is_no_error(tmp_path):
    network = small_network(ODD[:2])
    splits = ["train"] * 4 + ["valid"] * 4 + ["test", "train"] * 3
    evaluation, pixels = small_evaluation(network, ODD[:2], splits)
    assert set(evaluation.predictions.evaluated["label"]) == {ODD[0]}
    page = (write(evaluation, network, pixels, tmp_path) / "report.html").read_text(encoding="utf-8")
    assert "holds one class alone" in page
    assert "nan" not in without_images(page).lower()
    assert "test/roc_auc" not in evaluation.metrics


def test_doubtful_labels_of_training_pictures_are_a_table_and_cards_to_mend_and_are_counted(tmp_path):
    network = small_network(CLASSES)
    out_of_fold = np.full((9, 3), 0.02) + 0.94 * np.eye(3)[np.arange(9) % 3]
    out_of_fold[4] = [0.02, 0.02, 0.96]
    evaluation, pixels = small_evaluation(network, CLASSES, EVEN_SPLITS, out_of_fold=out_of_fold)
    folder = write(evaluation, network, pixels, tmp_path)
    (suspect,) = pd.read_csv(folder / "training_label_errors.csv").to_dict("records")
    assert (suspect["row"], suspect["label"], suspect["suggested"]) == (4, "bee", "cow")
    page = (folder / "report.html").read_text(encoding="utf-8")
    cards = page.partition(">The most doubtful in training<")[2].partition("<h3")[0]
    assert cards.count("<figure>") == 1
    assert cards.count("<img") == 2, "the picture and its Grad-CAM"
    assert 'data-action="relabel" data-label="cow"' in cards
    assert 'data-split="train"' in cards
    assert ", 1 in training (training_label_errors.csv)" in summarize(evaluation)


def test_a_backbone_without_a_feature_map_has_no_heat(odd):
    pixels = np.zeros((len(SPLITS), 160, 160, 3), np.uint8)
    rows = odd[0].predictions.evaluated.head(2)
    assert explain_predictions(small_network(ODD, "test_vit", 160), pixels, rows, ODD, CPU) is None


def test_the_heat_of_each_top_loss_is_for_the_class_predicted(odd):
    evaluation, pixels, _ = odd
    rows = top_losses(evaluation.predictions.evaluated, 4)
    network = small_network(ODD)
    heats = explain_predictions(network, pixels, rows, ODD, CPU)
    assert list(heats) == rows["row"].tolist()
    other = explain_predictions(network, pixels, rows.assign(predicted=rows["label"]), ODD, CPU)
    assert any(np.abs(heats[row] - other[row]).max() > 0.1 for row in heats)


CLASSES = ["ant", "bee", "cow"]
EVEN_SPLITS = ["train"] * 9 + ["valid"] * 6 + ["test"] * 9


@pytest.fixture
def evaluation() -> Evaluation:
    return small_evaluation(small_network(CLASSES), CLASSES, EVEN_SPLITS)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    return tmp_path


def test_the_first_number_is_the_accuracy_and_the_second_its_interval(evaluation):
    words, numbers, note = first_parts(evaluation)
    evaluated = evaluation.predictions.evaluated
    right = (evaluated["label"] == evaluated["predicted"]).sum()
    assert words.text == f"The model is right on {right} of 9 test pictures, which it was not trained on."
    assert numbers.pairs[0] == (f"{evaluation.metrics['test/accuracy']:.1%}", "accuracy on 9 test pictures")
    assert numbers.pairs[1][0].endswith(f"to {evaluation.metrics['test/accuracy_high']:.1%}")
    assert note.text == ""


def test_what_is_good_comes_last_and_every_command_changes_what_its_verdict_says(evaluation):
    object.__setattr__(evaluation, "verdict", Verdict("good", "All is well."))
    object.__setattr__(evaluation, "verdicts", [Verdict("leakage", "Twins."), Verdict("x", "y", {"seed": 5})])
    parts = advice_parts(evaluation, lambda changes: f"run {dict(changes)}")
    assert parts == [
        Advice("leakage", "Twins."),
        Advice("x", "y", "run {'seed': 5}"),
        Advice("no over-fitting", "All is well.", is_good=True),
    ]


def test_the_first_advice_is_one_line_with_its_command_and_nothing_where_all_is_well(evaluation):
    well, twins = Verdict("good", "All is well."), Verdict("leakage", "Twins.")
    found = replace(evaluation, verdict=Verdict("overfitting", "Far below.", {"seed": 5}), verdicts=[twins])
    assert first_advice(found, lambda changes: f"run {dict(changes)}") == "Far below. Try: run {'seed': 5}"
    assert first_advice(replace(evaluation, verdict=well, verdicts=[twins]), str) == "Twins."
    assert first_advice(replace(evaluation, verdict=well, verdicts=[]), str) == ""


def test_counts_and_shares_stand_side_by_side_for_few_classes(evaluation, folder):
    (figures,) = [part for part in failure_parts(evaluation, folder) if isinstance(part, Figures)]
    assert [path.name for path in figures.paths] == ["confusion.png", "confusion_shares.png"]


def test_the_lowest_f1_comes_first(evaluation, folder):
    table = failure_parts(evaluation, folder)[1]
    assert table["F1"].is_monotonic_increasing
    assert "in figures" not in table


def test_names_that_figures_show_otherwise_are_told_in_the_table(folder):
    classes = ["ant", "bee", "猫"]
    evaluation, _ = small_evaluation(small_network(classes), classes, EVEN_SPLITS)
    table = failure_parts(evaluation, folder)[1]
    assert dict(zip(table["class"], table["in figures"], strict=True)) == {"ant": "", "bee": "", "猫": "no. 3"}


def test_without_epochs_there_are_no_curves(evaluation, folder):
    assert any(isinstance(part, Figures) for part in overfitting_parts(evaluation, folder))
    object.__setattr__(evaluation, "epochs", evaluation.epochs.head(0))
    assert not any(isinstance(part, Figures) for part in overfitting_parts(evaluation, folder))


def test_without_a_positive_class_the_reader_is_told_how_to_name_one(evaluation, folder):
    assert "evaluate.positive_class" in threshold_parts(evaluation, folder)[-1].text
    assert not any(isinstance(part, Paragraph) and part.small_heading for part in threshold_parts(evaluation, folder))


def test_without_a_test_split_the_reader_is_told_on_what_the_model_was_evaluated(folder):
    evaluation, _ = small_evaluation(small_network(CLASSES), CLASSES, ["train"] * 9 + ["valid"] * 9)
    assert first_parts(evaluation)[-1].text == "There is no test split: the model is evaluated on validation pictures."
    calibrated = replace(evaluation, predictions=replace(evaluation.predictions, uncalibrated=""))
    assert "These are the same pictures" in calibration_parts(calibrated, folder)[0].text


def test_without_a_temperature_the_reader_is_told_why(evaluation, folder):
    uncalibrated = replace(evaluation, predictions=replace(evaluation.predictions, uncalibrated="Too few pictures."))
    assert calibration_parts(uncalibrated, folder)[0].text == "Too few pictures."


def test_the_summary_holds_the_headline_every_verdict_and_both_tables(evaluation):
    summary = summarize(evaluation)
    verdict, headline = summary.splitlines()[:3:2]
    assert verdict == f"**{evaluation.verdict.name}**: {evaluation.verdict.words}"
    assert headline == evaluation.headline()
    assert all(one.words in summary for one in (evaluation.verdict, *evaluation.verdicts))
    assert "| test, with TTA |" in summary
    assert "| cow |" in summary
    assert "no test split" not in summary


def test_without_a_test_split_the_summary_says_on_what_the_model_was_evaluated():
    evaluation, _ = small_evaluation(small_network(CLASSES), CLASSES, ["train"] * 9 + ["valid"] * 9)
    assert "There is no test split: the model is evaluated on validation pictures." in summarize(evaluation)


def test_an_ensemble_has_a_section_on_its_networks_and_one_network_has_none(odd):
    evaluation, _, folder = odd
    assert "The networks" not in (folder / "report.md").read_text()
    assert evaluation.ensemble == ""
    members = pd.DataFrame({"network": ["resize, seed 0", "resize, seed 1"], "accuracy": [0.1, 0.2], "loss": [2, 3.5]})
    several = replace(evaluation, members=members)
    words, table = ensemble_parts(several)
    assert several.ensemble in words.text
    assert "are of the first" in words.text
    assert table["network"].tolist() == ["resize, seed 0", "resize, seed 1", "mean of 2"]
    assert table["accuracy"].tolist() == [0.1, 0.2, evaluation.metrics["valid/accuracy"]]
    assert several.ensemble in summarize(several)
