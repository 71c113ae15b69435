"""Figures of many heads: what they show, and that gaps do not break them."""

import math

import numpy as np

from pipeline.figures_heads import band_figure, noise_figure, rates_figure
from pipeline.head_sweep import compare_settings
from pipeline.many_lr_finder import Band
from tests.pipeline.test_head_sweep import heads

BAND = Band(np.geomspace(1e-4, 1, 20), np.linspace(0.6, 0.1, 20), np.linspace(0.7, 0.3, 20), np.full(20, np.inf))


def labels(figure):
    return figure.axes[0].get_legend_handles_labels()[1]


def test_the_band_shows_the_median_the_suggestions_and_what_each_seed_suggests():
    figure = band_figure(BAND, {"valley": 1e-2, "steep": None}, "valley", [5e-3, 2e-2], seeds=12)
    figure.canvas.draw()
    shown = labels(figure)
    assert "median of 12 seeds" in shown
    assert "valley: 0.01 (taken)" in shown
    assert "valley of each seed: 0.005 to 0.02" in shown
    assert not any("steep" in label for label in shown)


def test_a_band_of_which_no_seed_suggests_anything_is_drawn():
    band_figure(BAND, {"valley": None}, "valley", [], seeds=1).canvas.draw()


def test_every_setting_is_a_dot_over_its_rate_and_the_recipes_own_is_marked():
    compared = compare_settings(heads([0.8, 0.82], [0.9, 0.88], [0.5, math.nan]), own=0)
    figure = rates_figure(compared)
    figure.canvas.draw()
    assert {"the recipe's own", "best", "diverged"} <= set(labels(figure))
    dots = max((one.get_offsets() for one in figure.axes[0].collections), key=len)
    assert sorted(dots[:, 0].tolist()) == [0.1, 1.0]


def test_every_head_is_a_dot_beside_its_settings_mean():
    table = heads([0.8, 0.82], [0.9, 0.88], [0.5, math.nan])
    figure = noise_figure(table, compare_settings(table, own=0), by_noise=0.03)
    figure.canvas.draw()
    assert {"a head, of one seed", "the recipe's own", "a lead that may be noise"} <= set(labels(figure))
    assert sorted(figure.axes[0].collections[0].get_offsets()[:, 1].tolist()) == [0.8, 0.82, 0.88, 0.9]


def test_one_seed_has_no_noise_to_draw():
    table = heads([0.8], [0.9])
    figure = noise_figure(table, compare_settings(table, own=0), by_noise=math.nan)
    figure.canvas.draw()
    assert "a lead that may be noise" not in labels(figure)
    rates_figure(compare_settings(table, own=0)).canvas.draw()
