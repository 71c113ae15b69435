import numpy as np
import pandas as pd
import pytest

from pipeline.reports.lr_finder_figures import lr_find_figure
from pipeline.reports.training_figures import learning_figure, training_figure
from pipeline.training.lr_finder import Curve, suggestions
from tests.pipeline.drawing import check, in_legend


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


def test_the_curves_of_all_stages_are_one_figure_with_each_stage_named_where_it_begins():
    epochs = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "stage": ["train_head", "train_head", "fine_tune", "fine_tune"],
            "phase": ["stored", "", "", ""],
            "train_loss": [0.7, 0.6, 0.5, 0.4],
            "valid_loss": [0.6, 0.6, 0.5, 0.5],
            "valid_accuracy": [0.5, 0.6, 0.7, 0.8],
        }
    )
    figure = learning_figure(epochs)
    check(figure)
    names = {text.get_text(): text.xy[0] for text in figure.axes[0].texts}
    assert names == {"train_head, stored": 0.5, "train_head": 1.5, "fine_tune": 2.5}
    check(learning_figure(epochs.head(1)))
