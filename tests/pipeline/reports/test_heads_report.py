import math

import numpy as np
import pandas as pd
import pytest

from pipeline.reports.heads_report import (
    BEST_COLUMNS,
    best_rows,
    comparison_metrics,
    noise_figure,
    rates_figure,
    write_band,
    write_heads_comparison,
)
from pipeline.training.heads.head_settings import compare_settings
from pipeline.training.lr_finder import Curve
from tests.pipeline.training.heads.test_head_settings import heads

RATES = np.geomspace(1e-5, 10, 50)


def falling(until: int) -> Curve:
    losses = np.concatenate([np.linspace(1, 0.3, until), np.linspace(0.3, 3, 50 - until)])
    return Curve(RATES, losses, losses)


def test_the_band_is_a_table_and_a_figure_and_its_median_suggests_a_rate(tmp_path):
    points = write_band(tmp_path, [falling(25), falling(30), falling(35)], "valley")
    assert points["suggestion/lr_low"] <= points["suggestion/lr"] <= points["suggestion/lr_high"]
    assert len(pd.read_csv(tmp_path / "lr_band.csv")) == 50
    assert (tmp_path / "figures" / "lr_band.png").is_file()


def test_curves_that_never_fall_suggest_nothing(tmp_path):
    rising = np.linspace(1, 2, 50)
    assert write_band(tmp_path, [Curve(RATES, rising, rising)] * 2, "valley") == {}


def test_the_tables_and_figures_are_written(tmp_path):
    table = heads([0.8, 0.82], [0.9, 0.88])
    write_heads_comparison(tmp_path, table, compare_settings(table, own=0), 2)
    assert len(pd.read_csv(tmp_path / "heads.csv")) == 4
    assert pd.read_csv(tmp_path / "settings.csv")["setting"].tolist() == [1, 0]
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"rates.png", "seed_noise.png"}


def test_the_metrics_are_those_of_the_best_and_of_the_recipes_own_without_what_is_not_finite():
    table = heads([0.8, math.nan], [0.9, 0.88], [0.7, 0.7])
    metrics = comparison_metrics(table, compare_settings(table, own=0), seconds=2.0)
    assert metrics["best/valid_accuracy"] == pytest.approx(0.89)
    assert metrics["best/valid_accuracy_std"] == pytest.approx(np.std([0.9, 0.88], ddof=1))
    assert "own/valid_accuracy" not in metrics
    assert (metrics["heads/trained"], metrics["heads/diverged"], metrics["heads_per_second"]) == (6, 1, 3)


def test_the_best_five_are_shown_and_the_recipes_own_whatever_its_rank():
    compared = compare_settings(heads(*[[0.9 - number / 100, 0.91 - number / 100] for number in range(9)]), own=7)
    rows = best_rows(compared)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "8 (the recipe's own)"]
    assert rows[0][1] == "0.9050 ± 0.0071"
    assert {len(row) for row in rows} == {len(BEST_COLUMNS)}


def labels(figure):
    return figure.axes[0].get_legend_handles_labels()[1]


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
