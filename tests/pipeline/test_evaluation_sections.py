from pathlib import Path

import pytest

from pipeline.diagnosis import Verdict
from pipeline.evaluation import Evaluation
from pipeline.evaluation_sections import (
    advice_parts,
    calibration_parts,
    failure_parts,
    first_parts,
    overfitting_parts,
    picture_parts,
    threshold_parts,
)
from pipeline.grad_cam import NO_MAP
from pipeline.report import Advice, Figures, Words
from tests.pipeline.evaluated import small_evaluation, small_network

CLASSES = ["ant", "bee", "cow"]
SPLITS = ["train"] * 9 + ["valid"] * 6 + ["test"] * 9


@pytest.fixture
def evaluation() -> Evaluation:
    return small_evaluation(small_network(CLASSES), CLASSES, SPLITS)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "figures").mkdir()
    return tmp_path


def test_the_first_number_is_the_accuracy_and_the_second_its_interval(evaluation):
    words, numbers, note = first_parts(evaluation)
    assert words.text == evaluation.headline()
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


def test_counts_and_shares_stand_side_by_side_for_few_classes(evaluation, folder):
    (figures,) = [part for part in failure_parts(evaluation, folder) if isinstance(part, Figures)]
    assert [path.name for path in figures.paths] == ["confusion.png", "confusion_shares.png"]


def test_the_lowest_f1_comes_first(evaluation, folder):
    table = failure_parts(evaluation, folder)[1]
    assert table["F1"].is_monotonic_increasing
    assert "in figures" not in table


def test_names_that_figures_show_otherwise_are_told_in_the_table(folder):
    classes = ["ant", "bee", "猫"]
    table = failure_parts(small_evaluation(small_network(classes), classes, SPLITS)[0], folder)[1]
    assert dict(zip(table["class"], table["in figures"], strict=True)) == {"ant": "", "bee": "", "猫": "no. 3"}


def test_without_epochs_there_are_no_curves(evaluation, folder):
    assert any(isinstance(part, Figures) for part in overfitting_parts(evaluation, folder))
    object.__setattr__(evaluation, "epochs", evaluation.epochs.head(0))
    assert not any(isinstance(part, Figures) for part in overfitting_parts(evaluation, folder))


def test_without_a_positive_class_the_reader_is_told_how_to_name_one(evaluation, folder):
    assert "evaluate.positive_class" in threshold_parts(evaluation, folder)[-1].text
    assert not any(isinstance(part, Words) and part.small_heading for part in threshold_parts(evaluation, folder))


def test_without_a_test_split_the_reader_is_told_on_what_the_model_was_judged(folder):
    evaluation, _ = small_evaluation(small_network(CLASSES), CLASSES, ["train"] * 9 + ["valid"] * 9)
    assert first_parts(evaluation)[-1].text == "There is no test split: the model is judged on validation pictures."
    assert "These are the same pictures" in calibration_parts(evaluation, folder)[0].text


def test_without_heat_the_reader_is_told_why_and_asking_for_too_many_pictures_is_no_error(folder):
    evaluation, pixels = small_evaluation(small_network(CLASSES), CLASSES, SPLITS)
    top, wrong, uncertain, right = picture_parts(evaluation, pixels, evaluation.judged, None, 0, folder)
    assert top.note == NO_MAP
    assert len(top.shown) == len(evaluation.judged)
    assert len(wrong.shown) == (evaluation.judged["label"] != evaluation.judged["predicted"]).sum()
    assert all(part.path.is_file() for part in (top, wrong, uncertain, right))
