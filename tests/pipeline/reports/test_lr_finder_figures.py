import numpy as np
import pytest

from pipeline.reports.lr_finder_figures import band_figure, lr_find_figure
from pipeline.training.heads.lr_band import Band
from pipeline.training.lr_finder import Curve, suggestions
from tests.pipeline.drawing import check, in_legend

BAND = Band(np.geomspace(1e-4, 1, 20), np.linspace(0.6, 0.1, 20), np.linspace(0.7, 0.3, 20), np.full(20, np.inf))


def curve(points: int, shape: str = "falls, then explodes") -> Curve:
    rates = np.geomspace(1e-6, 10, points)
    positions = np.linspace(0, 1, points)
    smoothed = {
        "falls, then explodes": 0.7 - 0.5 * positions + 20 * np.maximum(positions - 0.8, 0),
        "flat": np.full(points, 0.7),
        "rises": 0.7 + positions,
    }[shape]
    return Curve(rates, smoothed + 0.05 * np.sin(40 * positions), smoothed)


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


def test_the_band_shows_the_median_the_suggestions_and_what_each_seed_suggests():
    figure = band_figure(BAND, {"valley": 1e-2, "steep": None}, "valley", [5e-3, 2e-2], seeds=12)
    figure.canvas.draw()
    shown = in_legend(figure.axes[0])
    assert "median of 12 seeds" in shown
    assert "valley: 0.01 (taken)" in shown
    assert "valley of each seed: 0.005 to 0.02" in shown
    assert not any("steep" in label for label in shown)


def test_a_band_of_which_no_seed_suggests_anything_is_drawn():
    band_figure(BAND, {"valley": None}, "valley", [], seeds=1).canvas.draw()
