import numpy as np
import pytest

from pipeline.figures_pictures import in_colour, pictures_figure
from pipeline.picture_groups import Shown
from tests.pipeline.drawing import check


def shown(number: int, channels: int = 3, wide: int = 1) -> list[Shown]:
    draw = np.random.default_rng(0)
    return [
        Shown([draw.integers(0, 256, (8, 8, channels), dtype=np.uint8) for _ in range(wide)], [f"picture {index}"])
        for index in range(number)
    ]


@pytest.mark.parametrize(("number", "channels", "wide"), [(1, 1, 1), (1, 3, 1), (5, 3, 1), (3, 1, 2)])
def test_grey_and_coloured_pictures_and_pairs_can_be_drawn(number, channels, wide):
    pictures = shown(number, channels, wide)
    figure = pictures_figure(pictures, "Top losses")
    check(figure)
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == [f"picture {index}" for index in range(number)]
    for axes, one in zip(drawn, pictures, strict=True):
        beside = np.concatenate([np.broadcast_to(picture, (8, 8, 3)) for picture in one.pictures], axis=1)
        np.testing.assert_array_equal(axes.images[0].get_array(), beside)


def test_no_picture_at_all_is_an_empty_figure_and_no_error():
    figure = pictures_figure([], "Top losses")
    check(figure)
    assert not any(axes.images for axes in figure.axes)


def test_captions_of_any_letters_and_length_can_be_drawn():
    picture = np.zeros((8, 8, 1), np.uint8)
    caption = ["true: $\\frac$", "predicted: 猫 (12%)", "a path that goes on and on/" * 9 + "and ends.png"]
    figure = pictures_figure([Shown([picture], caption)], "t")
    check(figure)
    lines = figure.axes[0].get_title().split("\n")
    assert lines[:2] == ["true: $\\frac$", "predicted: ? (12%)"]
    assert max(map(len, lines)) <= 30
    assert lines[-1].endswith("ends.png")


def test_a_grey_picture_gets_three_equal_channels():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert in_colour(grey).shape == (3, 4, 3)
    assert (in_colour(grey) == grey).all()
