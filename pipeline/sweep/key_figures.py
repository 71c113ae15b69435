"""Figures of a study by the keys that are tuned: each alone, in pairs, all at once, and how much each matters. Each
function gives a figure, or None where there are too few trials for it, and draws nothing on a screen."""

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import numpy.typing as npt
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from optuna.trial import FrozenTrial, TrialState

from pipeline.figures import TRAIN, VALID, new_figure, plain
from pipeline.sweep.marks import COMPLETE, legend_above, mark_best_and_recipe, name_of_best, scatter_within, shown_range
from pipeline.sweep.trials import (
    best_trial,
    complete_trials,
    is_maximised,
    last_value,
    recipes_trial,
    trials_of,
    values_of,
)
from pipeline.sweep.tuned_keys import Key, varied_keys, weighed_keys

PANELS_IN_A_ROW = 3
FEWEST_FOR_SURFACE, MOST_FOR_SURFACE = 6, 300
KEYS_OF_CONTOUR = 3
GRID, LEVELS = 40, 14
MARGINS = (-0.05, 1.05)
MOST_LETTERS = 24  # along an axis, beyond which they are tilted


def slice_figure(study: optuna.Study, objective: str) -> Figure | None:
    """The first objective over each key, a panel for each; pruned trials hollow, at what they last came to. An arrow at
    the edge is a trial far beyond it."""
    trials = [trial for trial in trials_of(study) if trial.state.is_finished() and last_value(trial) is not None]
    keys = varied_keys(trials)
    if not keys:
        return None
    rows = -(-len(keys) // PANELS_IN_A_ROW)
    figure = Figure(figsize=(11, 0.5 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, min(len(keys), PANELS_IN_A_ROW), sharey=True, squeeze=False)
    values = [_value(trial) for trial in complete_trials(study)] or [_value(trial) for trial in trials]
    limits = shown_range(values, is_maximised(study))
    for place, axes in enumerate(panels.flat):
        axes.set_visible(place < len(keys))
        if place < len(keys):
            _slice_panel(axes, study, trials, keys[place], limits, place == 0)
    panels[0, 0].set_ylim(*limits)
    for axes in panels[:, 0]:
        axes.set_ylabel(objective)
    legend_above(figure, 4)
    return figure


def contour_figure(study: optuna.Study, objective: str) -> Figure | None:
    """The first objective over each pair of the three most important keys that have a scale, as complete trials show
    it: dots, over the mean of a Gaussian process that takes what other keys do for noise."""
    trials = [trial for trial in complete_trials(study) if np.isfinite(_value(trial))][-MOST_FOR_SURFACE:]
    keys = {key.name: key for key in varied_keys(trials) if not key.choices}
    if len(trials) < FEWEST_FOR_SURFACE or len(keys) < 2:
        return None
    first = [name for name in weighed_keys(study)["key"] if name in keys]
    chosen = [keys[name] for name in dict.fromkeys([*first, *keys])][:KEYS_OF_CONTOUR]
    pairs = list(combinations(chosen, 2))
    figure = Figure(figsize=(0.8 + 3.7 * max(len(pairs), 2), 4.1), layout="constrained")
    low, high = shown_range([_value(trial) for trial in trials], is_maximised(study))
    colours, scale = _colours(study), Normalize(low, high)
    levels = np.linspace(low, high, LEVELS)
    panels = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axes, (one, other) in zip(panels, pairs, strict=True):
        having = [trial for trial in trials if {one.name, other.name} <= set(trial.params)]
        places = np.array([[key.place(trial.params[key.name]) for key in (one, other)] for trial in having])
        values = np.clip([_value(trial) for trial in having], low, high)
        if len(having) >= FEWEST_FOR_SURFACE:
            line = np.linspace(0, 1, GRID)
            axes.contourf(
                line, line, _surface(places, values), levels, cmap=colours, norm=scale, alpha=0.8, extend="both"
            )
        dots = axes.scatter(*places.T, c=values, cmap=colours, norm=scale, s=30, edgecolor="white", linewidth=0.8)
        mark_best_and_recipe(axes, study, partial(_places, keys=(one, other)), named=axes is panels[0])
        _label(axes, one, "x")
        _label(axes, other, "y")
    figure.colorbar(dots, ax=list(panels), label=objective, pad=0.01)
    legend_above(figure, 2)
    return figure


def parallel_figure(study: optuna.Study, objectives: Sequence[str]) -> Figure | None:
    """Each complete trial as a line over an axis for each key and each objective, the better the darker."""
    trials = [trial for trial in complete_trials(study) if np.isfinite(values_of(trial)).all()]
    keys = varied_keys(trials)
    if not keys:
        return None
    ranges = [
        shown_range([_value(trial, place) for trial in trials], is_maximised(study, place))
        for place in range(len(objectives))
    ]
    ends = [Key(name, low, high) for name, (low, high) in zip(objectives, ranges, strict=True)]
    colours, scale = _colours(study), Normalize(*ranges[0])
    figure, axes = new_figure(max(1.55 * (len(keys) + len(ends)) + 0.6, 6), 5)
    heights = {
        trial.number: [*_places(trial, keys), *(end.place(_value(trial, place)) for place, end in enumerate(ends))]
        for trial in trials
    }
    for trial in sorted(trials, key=_value, reverse=not is_maximised(study)):
        axes.plot(np.clip(heights[trial.number], *MARGINS), color=colours(scale(_value(trial))), linewidth=1.3)
    for one, colour, name in (
        (recipes_trial(study), "black", "the recipe"),
        (best_trial(study), VALID, name_of_best(study)),
    ):
        if one is not None and one.number in heights:
            axes.plot(np.clip(heights[one.number], *MARGINS), color=colour, linewidth=2.4,
                      label=f"{name} (trial {one.number})")  # fmt: skip
    for place, key in enumerate([*keys, *ends]):
        axes.axvline(place, color="#555555", linewidth=0.8)
        for height, text in key.ticks():
            axes.annotate(text, (place, height), (4, 0), textcoords="offset points", fontsize=8, va="center", zorder=9,
                          parse_math=False, path_effects=[withStroke(linewidth=2.5, foreground="white")])  # fmt: skip
    axes.set_xticks(range(len(keys) + len(ends)), [_in_two_lines(key.name) for key in [*keys, *ends]], fontsize=9)
    axes.set(ylim=MARGINS, yticks=[], xlim=(-0.15, len(keys) + len(ends) - 0.6))
    axes.tick_params(axis="x", length=0)
    axes.spines[:].set_visible(False)
    legend_above(figure, 2)
    return figure


def importances_figure(study: optuna.Study, objective: str) -> Figure | None:
    """How much each key matters, as bars, each with the range over draws of the trials; see `weighed_keys`."""
    table = weighed_keys(study).iloc[::-1]
    if table.empty:
        return None
    figure, axes = new_figure(8, 1.3 + 0.42 * len(table))
    axes.barh(table["key"], table["share"], color=COMPLETE, alpha=0.75, height=0.6)
    axes.hlines(table["key"], table["low"], table["high"], color="black", linewidth=1.4)
    axes.set(xlim=(0, 1), xlabel=f"share of what sets the best 30 % apart in {objective}\n(the line: nine of ten draws "
             "of 80 % of the trials)")  # fmt: skip
    axes.set_title(f"What matters, from {len(complete_trials(study))} complete trials", fontsize=11)
    return figure


def _slice_panel(
    axes: Axes, study: optuna.Study, trials: Sequence[FrozenTrial], key: Key, limits: tuple[float, float], named: bool
) -> None:
    for state, label, fill, edge in (
        (TrialState.PRUNED, "pruned", "white", TRAIN),
        (TrialState.COMPLETE, "complete", COMPLETE, COMPLETE),
    ):
        points = [
            (key.place(trial.params[key.name]), _value(trial))
            for trial in trials
            if trial.state == state and key.name in trial.params and np.isfinite(_value(trial))
        ]
        scatter_within(axes, points, limits, edge, fill, label if named else None)
    mark_best_and_recipe(axes, study, lambda trial: [*_places(trial, [key]), _value(trial)], named)
    _label(axes, key, "x")
    plain(axes)


def _surface(places: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean of a Gaussian process with noise, on a grid over the unit square: (y, x)."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    kernel = 1.0 * RBF([0.5, 0.5], (0.3, 5.0)) + WhiteKernel(0.3, (0.05, 10.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    line = np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    with warnings.catch_warnings(action="ignore"):  # a scale at the end of its range is of no concern in a picture
        return np.asarray(process.fit(places, values).predict(grid)).reshape(GRID, GRID)


def _label(axes: Axes, key: Key, direction: str) -> None:
    ticks = key.ticks()
    if direction == "x":
        axes.set(xlim=MARGINS, xlabel=key.name)
        labels = axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
        if sum(len(text) for _, text in ticks) > MOST_LETTERS:
            axes.tick_params(axis="x", rotation=20)
    else:
        axes.set(ylim=MARGINS, ylabel=key.name)
        labels = axes.set_yticks([place for place, _ in ticks], [text for _, text in ticks])
    for tick in labels:
        tick.label1.set_parse_math(False)


def _colours(study: optuna.Study) -> ListedColormap:
    """Pale for bad, dark for good."""
    shades = colormaps["YlGnBu"](np.linspace(0.12, 1, 256))
    return ListedColormap(shades if is_maximised(study) else shades[::-1])


def _places(trial: FrozenTrial, keys: Sequence[Key]) -> tuple[float, ...]:
    return tuple(key.place(trial.params.get(key.name)) for key in keys)


def _value(trial: FrozenTrial, objective: int = 0) -> float:
    value = last_value(trial, objective)
    assert value is not None
    return value


def _in_two_lines(name: str) -> str:
    return name.replace(".", ".\n", 1).replace("/", "/\n", 1)
