import math

import pytest

from pipeline.figures import new_figure
from pipeline.sweep.marks import legend_above, scatter_within, shown_range

GOOD = [0.80, 0.81, 0.82, 0.83, 0.84, 0.85]


def test_a_trial_gone_wrong_does_not_flatten_the_others():
    low, high = shown_range([*GOOD, 0.1], is_maximised=True)
    assert 0.7 < low < 0.80
    assert 0.85 < high < 0.9
    low, high = shown_range([*(1 - value for value in GOOD), 7.0, math.inf], is_maximised=False)
    assert 0.1 < low < 0.15
    assert 0.2 < high < 0.3


def test_the_best_is_shown_however_far_out_it_is():
    assert shown_range([*GOOD, 3.0], is_maximised=True)[1] > 3
    assert shown_range([*GOOD, -3.0], is_maximised=False)[0] < -3


@pytest.mark.parametrize("values", [[], [0.5], [0.0, 0.0], [math.inf], [math.nan, 0.5]])
def test_the_range_is_never_empty(values):
    low, high = shown_range(values, is_maximised=True)
    assert low < high


def test_what_is_beyond_the_range_is_an_arrow_at_its_edge():
    _, axes = new_figure(2, 2)
    scatter_within(axes, [(0, 0.5), (1, 9.0), (2, -9.0)], (0.0, 1.0), "black", "white", "some")
    assert axes.collections[0].get_offsets().tolist() == [[0, 0.5]]
    assert [(line.get_marker(), line.get_xdata().tolist()) for line in axes.lines] == [("v", [2]), ("^", [1])]


def test_what_several_panels_show_is_named_once_and_nothing_where_nothing_is_named():
    figure, axes = new_figure(2, 2)
    legend_above(figure, 3)
    assert figure.legends == []
    for _ in range(2):
        axes.plot([0], [0], label="dots")
    legend_above(figure, 3)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dots"]
