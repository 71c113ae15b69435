import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.figures import confusion_figure, lr_find_figure, pictures_figure, training_figure
from pipeline.lr_finder import Curve
from pipeline.suggest import suggestions


def in_legend(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def check(figure: Figure) -> Image.Image:
    """The figure as a picture: all that it holds is finite, and drawing it raises no warning."""
    for axes in figure.axes:
        for line in axes.lines:
            assert np.isfinite(np.asarray(line.get_xydata(), float)).all()
        for collection in axes.collections:
            assert np.isfinite(np.asarray(collection.get_offsets(), float)).all()
        for image in axes.images:
            assert np.isfinite(np.asarray(image.get_array(), float)).all()
        for text in axes.texts:
            assert np.isfinite(text.get_position()).all()
        assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()
    file = io.BytesIO()
    with warnings.catch_warnings(action="error"):
        figure.savefig(file, format="png", dpi=30)
    picture = Image.open(file).convert("L")
    assert picture.getextrema()[0] < picture.getextrema()[1], "nothing was drawn"
    return picture


def curve(points: int, shape: str = "falls, then explodes") -> Curve:
    rates = np.geomspace(1e-6, 10, points)
    places = np.linspace(0, 1, points)
    smoothed = {
        "falls, then explodes": 0.7 - 0.5 * places + 20 * np.maximum(places - 0.8, 0),
        "flat": np.full(points, 0.7),
        "rises": 0.7 + places,
    }[shape]
    return Curve(rates, smoothed + 0.05 * np.sin(40 * places), smoothed)


@pytest.mark.parametrize(
    ("points", "shape"),
    [(1, "flat"), (2, "rises"), (12, "falls, then explodes"), (100, "falls, then explodes"), (100, "flat")],
)
def test_any_range_test_can_be_drawn(points, shape):
    drawn = curve(points, shape)
    check(lr_find_figure(drawn, suggestions(drawn.rates, drawn.smoothed), "valley"))


def test_the_suggestion_taken_is_marked_and_one_that_is_none_is_left_out():
    found = {"valley": 2e-3, "steep": None, "slide": 1e-1, "minimum": 5e-2}
    figure = lr_find_figure(curve(100), found, "valley")
    check(figure)
    marks = [text for text in in_legend(figure.axes[0]) if ":" in text]
    assert marks == ["valley: 0.002 (taken)", "slide: 0.1", "minimum: 0.05"]


def test_a_suggestion_is_marked_where_it_lies_on_the_smoothed_curve():
    drawn = curve(100)
    figure = lr_find_figure(drawn, {"valley": float(drawn.rates[30])}, "valley")
    ((rate, loss),) = figure.axes[0].collections[0].get_offsets()
    assert rate == pytest.approx(drawn.rates[30])
    assert loss == pytest.approx(drawn.smoothed[30])


def history(epochs: int, groups: list[str], steps_each: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An epoch table and a step table that go on from an earlier stage."""
    ends = 100 + steps_each * np.arange(1, epochs + 1)
    by_epoch = pd.DataFrame(
        {
            "step": ends,
            "train_loss": 0.7 / np.arange(1, epochs + 1),
            "valid_loss": 0.8 / np.arange(1, epochs + 1),
            "valid_accuracy": np.linspace(0.5, 0.9, epochs),
        }
    )
    steps = np.arange(101, ends[-1] + 1)
    by_step = pd.DataFrame({"step": steps, "loss": np.linspace(0.9, 0.1, len(steps))})
    for number, group in enumerate(groups):
        by_step[group] = 10.0 ** (number - 4) * np.linspace(1, 1e-3, len(steps))
    return by_epoch, by_step


@pytest.mark.parametrize(
    ("epochs", "groups"), [(1, ["head"]), (3, ["head"]), (3, ["late", "head"]), (1, ["early", "late", "head"])]
)
def test_training_is_drawn_however_short_it_was_and_whatever_was_frozen(epochs, groups):
    figure = training_figure(*history(epochs, groups))
    check(figure)
    assert in_legend(figure.axes[1]) == groups


def test_one_step_in_all_can_be_drawn():
    check(training_figure(*history(1, ["head"], steps_each=1)))


def test_each_epoch_has_its_accuracy_written_in():
    figure = training_figure(*history(3, ["head"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0%", "70.0%", "90.0%"]


def square(number: int) -> pd.DataFrame:
    names = [f"class {index}" for index in range(number)]
    return pd.DataFrame(np.eye(number, dtype=int) * 7 + 1, names, names)


@pytest.mark.parametrize("number", [2, 40])
def test_a_confusion_of_few_or_many_classes_can_be_drawn(number):
    figure = confusion_figure(square(number), "True against predicted")
    check(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == square(number).index.tolist()


@pytest.mark.parametrize(("number", "first_text"), [(12, "8\n42%"), (13, "8"), (30, "8"), (31, None)])
def test_a_confusion_of_more_classes_has_less_text(number, first_text):
    texts = [text.get_text() for text in confusion_figure(square(number), "t").axes[0].texts]
    assert texts[:1] == ([first_text] if first_text else [])
    assert len(texts) == (number**2 if first_text else 0)


def test_a_confusions_colours_are_shares_of_the_true_class_and_its_texts_are_counts():
    counts = pd.DataFrame([[3, 1], [0, 0]], ["ant", "bee"], ["ant", "bee"])
    figure = confusion_figure(counts, "t")
    check(figure)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.75, 0.25], [0, 0]])
    at = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert at == {(0, 0): "3\n75%", (1, 0): "1\n25%", (0, 1): "0\n0%", (1, 1): "0\n0%"}
    assert figure.axes[0].get_ylabel() == "true"


def test_names_that_look_like_formulas_are_drawn_as_they_are():
    names = ["$_$", "$\\frac$", "a_b^c"]
    figure = confusion_figure(pd.DataFrame(np.eye(3, dtype=int), names, names), "t")
    check(figure)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    check(pictures_figure([np.zeros((8, 8, 1), np.uint8)] * 3, names, "Top losses"))


@pytest.mark.parametrize(("number", "channels"), [(1, 1), (1, 3), (5, 3)])
def test_grey_and_coloured_pictures_can_be_drawn(number, channels):
    pictures = np.random.default_rng(0).integers(0, 256, (number, 8, 8, channels), dtype=np.uint8)
    figure = pictures_figure(pictures, [f"picture {index}" for index in range(number)], "Top losses")
    check(figure)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [f"picture {index}" for index in range(number)]
    for axes, picture in zip(shown, pictures, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.broadcast_to(picture, (8, 8, 3)))


def test_no_picture_at_all_is_an_empty_figure_and_no_error():
    figure = pictures_figure([], [], "Top losses")
    check(figure)
    assert not any(axes.images for axes in figure.axes)
