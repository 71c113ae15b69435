from dataclasses import replace

import pandas as pd
import pytest

from pipeline.evaluation.grad_cam import NO_MAP
from pipeline.reports.picture_cards import failure_cards, label_error_cards, mending_part, near_duplicate_cards
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
    cards = label_error_cards(evaluation, pixels, folder)[-1].shown
    train = evaluation.predictions.of("train").nlargest(8, "loss")
    assert [card.mendable[0].hash for card in cards] == train["hash"].tolist()


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
