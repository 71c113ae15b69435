from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.evaluation.grad_cam import NO_MAP
from pipeline.reports import picture_cards
from pipeline.reports.picture_cards import (
    explained_label_errors,
    failure_cards,
    label_error_cards,
    mending_part,
    near_duplicate_cards,
)
from pipeline.reports.pictures import Mendable
from tests.pipeline.small_evaluations import small_evaluation, small_network

CLASSES = ["ant", "bee", "cow"]
SPLITS = ["train"] * 9 + ["valid"] * 6 + ["test"] * 9


@pytest.fixture(scope="module")
def evaluated():
    """An evaluation, and the pixels of its pictures."""
    return small_evaluation(small_network(CLASSES), CLASSES, SPLITS)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "figures").mkdir()
    return tmp_path


def row_of(evaluation, content):
    table = evaluation.predictions.table
    return table[table["hash"] == content].iloc[0]


def test_without_heat_the_reader_is_told_why_and_asking_for_too_many_pictures_is_no_error(evaluated, folder):
    evaluation, pixels = evaluated
    rows = evaluation.predictions.evaluated
    top, wrong, uncertain, right = failure_cards(evaluation, pixels, rows, None, folder)
    assert top.note == NO_MAP
    assert len(top.shown) == len(rows)
    assert len(wrong.shown) == (rows["label"] != rows["predicted"]).sum()
    assert all(part.path.is_file() for part in (top, wrong, uncertain, right))


def test_every_card_names_its_pictures_by_their_content(evaluated, folder):
    evaluation, pixels = evaluated
    worst = evaluation.predictions.evaluated.nlargest(3, "loss")
    cards = failure_cards(evaluation, pixels, worst, None, folder)[0].shown
    assert [card.mendable for card in cards] == [
        [Mendable(row.hash, row.path, "test", row.label, row.predicted)] for row in worst.itertuples()
    ]


def test_training_pictures_of_the_highest_losses_are_among_the_doubtful_ones(evaluated, folder):
    evaluation, pixels = evaluated
    cards = label_error_cards(evaluation, pixels, None, folder)[-1].shown
    train = evaluation.predictions.of("train").nlargest(8, "loss")
    assert [card.mendable[0].hash for card in cards] == train["hash"].tolist()


def test_training_pictures_that_a_person_has_decided_on_are_not_among_them(evaluated, folder):
    evaluation, pixels = evaluated
    worst, *others = evaluation.predictions.of("train").nlargest(9, "loss")["hash"]
    decided = pd.DataFrame([{"hash": worst, "path": "a", "was": "ant", "action": "keep", "label": "ant"}])
    parts = label_error_cards(replace(evaluation, corrected=decided), pixels, None, folder)
    assert [card.mendable[0].hash for card in parts[-1].shown] == others
    assert parts[1].text == "Labels that data.corrections keeps or corrects are not doubted again."


def doubting(evaluation, rows):
    """The evaluation where cross-validation doubts these training rows, each in favour of the next class."""
    table = evaluation.predictions.table.set_index("row").loc[rows]
    suggested = [CLASSES[(CLASSES.index(label) + 1) % 3] for label in table["label"]]
    found = table[["path", "split", "label"]].assign(suggested=suggested, probability=0.9, quality=0.05).reset_index()
    return replace(evaluation, training_label_errors=found)


def test_training_pictures_are_doubted_where_there_was_cross_validation(evaluated, folder):
    evaluation, pixels = evaluated
    doubted = doubting(evaluation, [7, 2])
    assert len(label_error_cards(evaluation, pixels, None, folder)) == 3
    _, _, cards, _ = label_error_cards(doubted, pixels, None, folder)
    assert cards.note.startswith("2 of the training labels, by cross-validation")
    assert [card.caption[0] for card in cards.shown] == ["labelled bee (5.0%)", "labelled cow (5.0%)"]


def test_what_is_suggested_for_a_training_picture_is_not_what_the_model_has_learned(evaluated, folder):
    evaluation, pixels = evaluated
    learned = evaluation.predictions.table.assign(predicted=lambda table: table["label"])
    knowing = replace(evaluation, predictions=replace(evaluation.predictions, table=learned))
    cards = label_error_cards(doubting(knowing, [7, 2]), pixels, None, folder)[2]
    found = [(one.mendable[0].split, one.mendable[0].label, one.mendable[0].predicted) for one in cards.shown]
    assert found == [("train", "bee", "cow"), ("train", "cow", "ant")]


def test_the_most_doubtful_training_pictures_have_heat_for_what_is_suggested(evaluated, folder):
    evaluation, pixels = evaluated
    doubted = doubting(evaluation, [7, 2])
    assert explained_label_errors(doubted).to_numpy().tolist() == [[7, "cow"], [2, "ant"]]
    assert len(explained_label_errors(evaluation)) == 0
    heat = np.zeros((32, 32), dtype=np.float32)
    cards = label_error_cards(doubted, pixels, {7: heat}, folder)[2]
    assert [len(card.pictures) for card in cards.shown] == [2, 1]


def test_of_many_doubtful_training_pictures_the_page_shows_some_and_the_figure_fewer(evaluated, folder, monkeypatch):
    evaluation, pixels = evaluated
    drawn = []
    monkeypatch.setattr(picture_cards, "pictures_figure", lambda shown, title: drawn.append(len(shown)) or Figure())
    for name, number in (("PICTURES_EACH", 1), ("MOST_SUSPECTS", 1), ("MOST_TRAINING_SUSPECTS", 2)):
        monkeypatch.setattr(picture_cards, name, number)
    many = doubting(evaluation, [7, 2, 4])
    cards = label_error_cards(many, pixels, None, folder)[2]
    assert cards.note.startswith("3 of the training labels")
    assert cards.note.endswith("these are the 2 most doubtful.")
    assert (len(cards.shown), drawn[1]) == (2, 1)
    assert len(explained_label_errors(many)) == 1


def test_both_pictures_of_a_pair_can_be_mended(evaluated, folder):
    evaluation, pixels = evaluated
    pair = evaluation.near_duplicates.iloc[0]
    card = near_duplicate_cards(evaluation, pixels, folder)[1].shown[0]
    assert [one.path for one in card.mendable] == [pair["path"], pair["twin_path"]]
    assert card.mendable[1].predicted == row_of(evaluation, card.mendable[1].hash)["predicted"]


def test_the_bar_has_the_corrections_of_before_and_a_key_of_this_evaluation_alone(evaluated):
    evaluation, _ = evaluated
    before = pd.DataFrame([{"hash": "a", "path": "b", "was": "ant", "action": "drop", "label": ""}])
    bar = mending_part(replace(evaluation, corrected=before), lambda changes: f"run {dict(changes)}")
    assert bar.earlier == before.to_dict("records")
    assert bar.command == "run {'data.corrections': 'corrections.csv'}"
    table = evaluation.predictions.table
    other = replace(evaluation.predictions, table=table.assign(loss=table["loss"] + 1))
    assert mending_part(replace(evaluation, predictions=other), str).key != bar.key
