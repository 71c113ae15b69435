from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from pipeline.reports.pictures import (
    CaptionedPictures,
    caption_label_errors,
    caption_pairs,
    caption_predictions,
    confidently_wrong,
    in_colour,
    most_uncertain,
    overlay,
    pictures_figure,
    some_right,
    top_losses,
)
from tests.pipeline.drawing import check

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
TABLE = pd.DataFrame(
    {
        "row": [3, 5, 7, 9, 11],
        "path": ["a.png", "b.png", "c.png", "d.png", "e.png"],
        "label": ["cat", "cat", "dog", "dog", "cat"],
        "predicted": ["cat", "dog", "dog", "cat", "cat"],
        "confidence": [0.9, 0.6, 0.55, 0.95, 0.7],
        "loss": [0.11, 0.92, 0.60, 3.0, 0.36],
        "probability/cat": [0.9, 0.4, 0.45, 0.95, 0.7],
        "probability/dog": [0.1, 0.6, 0.55, 0.05, 0.3],
    },
    index=[30, 10, 50, 20, 40],
)


def test_the_groups_are_chosen_by_loss_confidence_and_rightness():
    assert top_losses(TABLE, 2)["row"].tolist() == [9, 5]
    assert most_uncertain(TABLE, 2)["row"].tolist() == [7, 5]
    assert confidently_wrong(TABLE, 5)["row"].tolist() == [9, 5]
    assert sorted(some_right(TABLE, 5, seed=0)["row"]) == [3, 7, 11]


def test_the_sample_of_right_ones_follows_from_the_seed():
    many = pd.concat([TABLE.assign(row=TABLE["row"] + 100 * copy) for copy in range(40)])
    rows = [some_right(many, 6, seed)["row"].tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("choose", [top_losses, most_uncertain, confidently_wrong])
def test_of_no_pictures_there_are_none_to_show(choose):
    assert caption_predictions(choose(TABLE.head(0), 4), PIXELS) == []


def test_each_picture_is_shown_with_its_labels_probabilities_loss_and_path():
    right, wrong = caption_predictions(TABLE.iloc[[0, 1]], PIXELS)
    assert right.caption == ["cat, correct (90.0%)", "loss 0.11", "a.png"]
    assert wrong.caption == ["true: cat (40.0%)", "predicted: dog (60.0%)", "loss 0.92", "b.png"]
    np.testing.assert_array_equal(right.pictures[0], PIXELS[3])


def test_heat_lies_beside_the_picture_it_was_found_for():
    one, other = caption_predictions(TABLE.iloc[[0, 1]], PIXELS, {3: np.zeros((8, 8))})
    assert len(one.pictures) == 2
    np.testing.assert_array_equal(one.pictures[1], PIXELS[3].repeat(3, axis=-1))
    assert len(other.pictures) == 1


def test_a_doubted_label_is_shown_with_the_one_suggested():
    errors = pd.DataFrame(
        {"row": [4], "path": ["x.png"], "split": ["test"], "label": ["cat"], "suggested": ["dog"],
         "probability": [0.97], "quality": [0.02]}
    )  # fmt: skip
    (shown,) = caption_label_errors(errors, PIXELS)
    assert shown.caption == ["labelled cat (2.0%)", "more like dog (97.0%)", "test: x.png"]
    np.testing.assert_array_equal(shown.pictures[0], PIXELS[4])


def test_a_pair_is_shown_side_by_side():
    pairs = pd.DataFrame(
        {"row": [1, 1], "path": "t.png", "split": "test", "label": "cat", "twin_row": [2, 6], "twin_path": "u.png",
         "twin_split": "train", "twin_label": "dog", "similarity": [1.0, 0.9712], "same_file": [True, False]}
    )  # fmt: skip
    same, alike = caption_pairs(pairs, PIXELS)
    assert same.caption == ["the same file", "test, cat: t.png", "train, dog: u.png"]
    assert alike.caption[0] == "similarity 0.971"
    np.testing.assert_array_equal(np.stack(alike.pictures), PIXELS[[1, 6]])


def shown(number: int, channels: int = 3, wide: int = 1) -> list[CaptionedPictures]:
    draw = np.random.default_rng(0)
    return [
        CaptionedPictures(
            [draw.integers(0, 256, (8, 8, channels), dtype=np.uint8) for _ in range(wide)], [f"picture {index}"]
        )
        for index in range(number)
    ]


@pytest.mark.parametrize(("number", "channels", "wide"), [(1, 1, 1), (1, 3, 1), (5, 3, 1), (3, 1, 2)])
def test_grey_and_coloured_pictures_and_pairs_can_be_drawn(number, channels, wide):
    pictures = shown(number, channels, wide)
    figure = pictures_figure(pictures, "Top losses")
    check(figure)
    (axes,) = figure.axes
    captions, title = axes.texts[:-1], axes.texts[-1].get_text()
    assert ([text.get_text() for text in captions], title) == ([one.caption[0] for one in pictures], "Top losses")
    for image, one in zip(axes.images, pictures, strict=True):
        beside = np.concatenate([np.broadcast_to(picture, (8, 8, 3)) for picture in one.pictures], axis=1)
        np.testing.assert_array_equal(image.get_array(), beside)


@pytest.mark.parametrize(("number", "wide", "lines"), [(1, 1, 1), (9, 1, 3), (5, 2, 12)])
def test_pictures_are_square_and_neither_they_nor_captions_cover_each_other(number, wide, lines):
    picture = np.zeros((8, 8, 3), np.uint8)
    caption = [f"line {line}" for line in range(lines)]
    title = "Highest losses of training pictures"
    figure = pictures_figure([CaptionedPictures([picture] * wide, caption)] * number, title)
    check(figure)
    (axes,) = figure.axes
    boxes = [artist.get_window_extent() for artist in (*axes.images, *axes.texts)]
    for box in boxes[:number]:
        assert box.width == pytest.approx(wide * box.height)
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert figure.bbox.containsx(box.x0)
        assert figure.bbox.containsx(box.x1)
        assert figure.bbox.containsy(box.y0)
        assert figure.bbox.containsy(box.y1)


def test_no_picture_at_all_is_an_empty_figure_and_no_error():
    figure = pictures_figure([], "Top losses")
    check(figure)
    assert not figure.axes[0].images


def test_captions_of_any_letters_and_length_can_be_drawn():
    picture = np.zeros((8, 8, 1), np.uint8)
    caption = ["true: $\\frac$", "predicted: 猫 (12%)", "a path that goes on and on/" * 9 + "and ends.png"]
    figure = pictures_figure([CaptionedPictures([picture], caption)], "t")
    check(figure)
    lines = figure.axes[0].texts[0].get_text().split("\n")
    assert lines[:2] == ["true: $\\frac$", "predicted: ? (12%)"]
    assert max(map(len, lines)) <= 30
    assert lines[-1].endswith("ends.png")


def test_a_grey_picture_gets_three_equal_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert in_colour(grey).shape == (3, 4, 3)
    assert (in_colour(grey) == grey).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_where_there_is_no_heat_the_picture_is_seen_in_grey(channels):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    heat = np.zeros((8, 8))
    heat[0] = 1
    blended = overlay(picture, heat)
    assert blended.shape == (8, 8, 3)
    assert blended.dtype == np.uint8
    grey = np.broadcast_to(picture.mean(-1, keepdims=True), (8, 8, 3))
    np.testing.assert_allclose(blended[1:], grey[1:], atol=0.5)
    assert np.ptp(blended[0], axis=-1).min() > 30
