"""Figures of a study, by trial: how it went, how each trial learned, and what two objectives cost one another. Each
function gives a figure and draws nothing on a screen.

Optuna's own figures are drawn by pyplot, change its style for the whole process, and let the labels of keys such as
fine_tune.weight_decay overlap; so these are our own.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from pipeline.figures import TRAIN, VALID, new_figure, plain
from pipeline.sweep.key_figures import contour_figure, importances_figure, parallel_figure, slice_figure
from pipeline.sweep.marks import COMPLETE, legend_above, mark_best_and_recipe, scatter_within, shown_range
from pipeline.sweep.trials import (
    best_so_far,
    best_trial,
    complete_trials,
    is_maximised,
    last_value,
    pareto_front,
    recipes_trial,
    retries,
    trials_of,
    values_of,
)

MOST_NAMED = 15
Points = list[tuple[float, float]]


def sweep_figures(study: optuna.Study, objectives: Sequence[str]) -> dict[str, Figure]:
    """All figures that there are enough trials for, by name: "history", "curves", "pareto", "importances", "slice",
    "contour" and "parallel_coordinates", in this order; none where no trial has been judged."""
    drawn = {
        "history": history_figure(study, objectives),
        "curves": learning_curves_figure(study, objectives[0]),
        "pareto": pareto_figure(study, objectives),
        "importances": importances_figure(study, objectives[0]),
        "slice": slice_figure(study, objectives[0]),
        "contour": contour_figure(study, objectives[0]),
        "parallel_coordinates": parallel_figure(study, objectives),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def history_figure(study: optuna.Study, objectives: Sequence[str]) -> Figure | None:
    """Each trial by number as a dot at what it came to, with the best so far as a line; a panel for each objective.

    Those that failed are marked at the bottom; an arrow at the edge is a trial far beyond it.
    """
    trials = [trial for trial in trials_of(study) if trial.state.is_finished()]
    if not any(last_value(trial) is not None for trial in trials):
        return None
    figure = Figure(figsize=(9, 0.8 + 3.4 * len(objectives)), layout="constrained")
    panels = figure.subplots(len(objectives), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, objective) in enumerate(zip(panels, objectives, strict=True)):
        _history_panel(axes, study, trials, place)
        axes.set_ylabel(objective)
        plain(axes)
    panels[-1].set_xlabel("trial")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, 4)
    return figure


def learning_curves_figure(study: optuna.Study, objective: str) -> Figure | None:
    """The objective by epoch, a line for each trial: grey and dotted where it was pruned, the best one thick."""
    trials = [trial for trial in trials_of(study) if trial.intermediate_values]
    if not trials:
        return None
    best, own = best_trial(study), recipes_trial(study)
    figure, axes = new_figure(9, 4.8)
    for trial in trials:
        epochs, values = _curve(trial)
        kind, style, colour = _curve_style(trial)
        axes.plot(epochs, values, style, color=colour, linewidth=1, alpha=0.6, label=f"_{kind}", marker=".", ms=4)
        if trial.state == TrialState.PRUNED:
            axes.plot(epochs[-1:], values[-1:], "o", color=TRAIN, ms=5, mfc="white", label="_end")
    for one, colour, name in ((own, "black", "the recipe"), (best, VALID, "best")):
        if one is not None and one.intermediate_values:
            axes.plot(*_curve(one), color=colour, linewidth=2.2, label=f"{name} (trial {one.number})", zorder=4)
    for kind, style, colour in dict.fromkeys(_curve_style(trial) for trial in trials):
        axes.plot([], [], style, color=colour, linewidth=1, label=kind, marker="o" if kind == "pruned" else None,
                  mfc="white", ms=5)  # fmt: skip
    everything = [value for trial in trials for value in _curve(trial)[1].tolist()]
    axes.set_ylim(*shown_range(everything, is_maximised(study)))
    axes.set(xlabel="epoch, over all stages", ylabel=objective)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(figure, 5)
    return figure


def pareto_figure(study: optuna.Study, objectives: Sequence[str]) -> Figure | None:
    """The first of two objectives over the second, with the trials that none beats in both joined and numbered."""
    trials = [trial for trial in complete_trials(study) if np.isfinite(values_of(trial)).all()]
    if len(objectives) < 2 or not trials:
        return None
    figure, axes = new_figure(8, 5)
    front = sorted((_pair(trial), trial.number) for trial in pareto_front(study) if np.isfinite(values_of(trial)).all())
    x, y = np.array([_pair(trial) for trial in trials]).T
    axes.scatter(x, y, s=32, color=COMPLETE, alpha=0.55, linewidth=0, label="complete")
    axes.plot(*np.array([pair for pair, _ in front]).T, "-o", color=VALID, linewidth=1.2, ms=5, label="Pareto front")
    mark_best_and_recipe(axes, study, _pair)
    axes.set_xlim(*shown_range([_pair(trial)[0] for trial in trials], is_maximised(study, 1)))
    axes.set_ylim(*shown_range([_pair(trial)[1] for trial in trials], is_maximised(study, 0)))
    _number_apart(axes, front)
    axes.set(xlabel=f"{objectives[1]} ({_better(study, 1)})", ylabel=f"{objectives[0]} ({_better(study, 0)})")
    legend_above(figure, 4)
    return figure


def _history_panel(axes: Axes, study: optuna.Study, trials: Sequence[FrozenTrial], objective: int) -> None:
    done: Points = [
        (trial.number, float(value))
        for trial in complete_trials(study)
        if (value := last_value(trial, objective)) is not None and np.isfinite(value)
    ]
    pruned: Points = [
        (trial.number, float(value))
        for trial in trials
        if trial.state == TrialState.PRUNED and (value := last_value(trial, objective)) is not None
    ]
    low, high = shown_range([value for _, value in done or pruned], is_maximised(study, objective))
    axes.set_ylim(low, high)
    axes.set_xlim(-0.8, max(trial.number for trial in trials) + 0.8)
    scatter_within(axes, pruned, (low, high), TRAIN, "white", "pruned")
    scatter_within(axes, done, (low, high), COMPLETE, COMPLETE, "complete")
    line = best_so_far(study, objective)
    line = line[np.isfinite(line["value"])]
    if len(line):
        ends = [*line["number"], trials[-1].number]
        values = [*line["value"], line["value"].iloc[-1]]
        axes.plot(ends, values, color=VALID, drawstyle="steps-post", linewidth=1.4, label="best so far", zorder=1)
    again = retries(study)
    failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
    for shape, label, numbers in (
        ("x", "failed", [number for number in failed if number not in again]),
        ("1", "broken off, run again", [number for number in failed if number in again]),
    ):
        if numbers:
            bottom = [0.03] * len(numbers)
            axes.plot(numbers, bottom, shape, color="black", ms=7, label=label, transform=axes.get_xaxis_transform())
    mark_best_and_recipe(axes, study, lambda trial: (trial.number, last_value(trial, objective) or 0.0))


def _curve(trial: FrozenTrial) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Epochs and finite values."""
    points = [(epoch, value) for epoch, value in sorted(trial.intermediate_values.items()) if np.isfinite(value)]
    epochs, values = np.array(points, float).reshape(-1, 2).T
    return epochs, values


def _curve_style(trial: FrozenTrial) -> tuple[str, str, str]:
    """What the line says, how it is drawn, and its colour."""
    if trial.state == TrialState.COMPLETE:
        return "complete", "-", COMPLETE
    return ("pruned", ":", TRAIN) if trial.state == TrialState.PRUNED else ("running or failed", "--", "#d9822b")


def _pair(trial: FrozenTrial) -> tuple[float, float]:
    """The second objective, which is drawn along, and the first, which is drawn up."""
    first, second = values_of(trial)
    return second, first


def _better(study: optuna.Study, objective: int) -> str:
    return "more is better" if is_maximised(study, objective) else "less is better"


def _number_apart(axes: Axes, front: Sequence[tuple[tuple[float, float], int]]) -> None:
    """Write the numbers of trials beside their dots, but for those whose text would lie on another's."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    written: list[npt.NDArray[np.float64]] = []
    for (x, y), number in front:
        place = np.array([(x - left) / (right - left), (y - low) / (high - low)])
        if len(written) < MOST_NAMED and all(np.abs((place - other) / (0.05, 0.05)).max() > 1 for other in written):
            axes.annotate(str(number), (x, y), (6, -11), textcoords="offset points", fontsize=8, color=VALID)
            written.append(place)
