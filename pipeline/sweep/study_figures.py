"""Figures of a study: Optuna's own, interactive, in which the best trial and the recipe's own are marked."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import optuna
from optuna import visualization
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from plotly.graph_objects import Figure, Scatter

from pipeline.sweep.trials import best_trial, complete_trials, recipes_trial, values_of

FEWEST_FOR_IMPORTANCES, FEWEST_FOR_CONTOUR = 10, 6
# Of few trials, Optuna's default of a tenth is too few to tell chance from cause; its authors advise five or more.
SHARE_OF_GOOD = 0.3
KEYS_OF_CONTOUR, KEYS_IN_A_ROW = 3, 3
INTEGER_TICKS = 20  # up to so many trials or epochs, each has a tick
BEST, RECIPE = "#d62728", "#222222"
DOTS = {"marker": {"size": 8, "line": {"width": 1, "color": "grey"}}}
LAYOUT = {
    "title": None,
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "margin": {"l": 70, "r": 40, "t": 50, "b": 60},
    "height": 420,
}


@dataclass(frozen=True)
class Mark:
    """A trial to be marked: its `name` in the legend, and how it is drawn."""

    trial: FrozenTrial
    name: str
    symbol: str
    colour: str


def study_figures(study: optuna.Study, objectives: Sequence[str]) -> dict[str, list[Figure]]:
    """All figures that there are enough trials for, by name: "history" (of each objective), "curves", "pareto",
    "importances", "slice" (of a few keys each), "contour" and "parallel_coordinates", in this order.

    Those of keys are of the first objective.
    """
    with warnings.catch_warnings(action="ignore"):  # of Optuna, on experimental features and few trials
        whole = _in_memory(study, range(len(objectives)), objectives)
        alone = [_in_memory(study, [index], objectives) for index in range(len(objectives))]
        keys, marks = _varied_keys(alone[0]), _marks(study)
        drawn = {
            "history": [
                figure for index, one in enumerate(alone) for figure in _history(one, objectives[index], index, marks)
            ],
            "curves": _curves(alone[0], objectives[0], marks),
            "pareto": _pareto(whole, objectives, marks),
            "importances": _importances(alone[0], objectives[0], keys),
            "slice": _slices(alone[0], objectives[0], keys, marks),
            "contour": _contour(alone[0], objectives[0], keys),
            "parallel_coordinates": _parallel_coordinates(whole, objectives, keys),
        }
    return {name: figures for name, figures in drawn.items() if figures}


def _in_memory(study: optuna.Study, indices: Sequence[int], objectives: Sequence[str]) -> optuna.Study:
    """A copy with some of the objectives, which asks no database and ends with the last trial that was started."""
    trials = study.get_trials(deepcopy=False)
    started = [trial.number for trial in trials if trial.state != TrialState.WAITING]
    found = optuna.create_study(directions=[study.directions[index] for index in indices])
    found.set_metric_names([objectives[index] for index in indices])
    for trial in trials[: max(started, default=-1) + 1]:
        one = copy.copy(trial)
        if trial.state == TrialState.COMPLETE:
            one.values = [values_of(trial)[index] for index in indices]
        elif trial.state == TrialState.PRUNED:
            one.values = None
        found.add_trial(one)
    return found


def _marks(study: optuna.Study) -> list[Mark]:
    best, own = best_trial(study), recipes_trial(study)
    name = "best" if len(study.directions) == 1 else "proposed"
    marks = [Mark(own, f"the recipe (trial {own.number})", "diamond-open", RECIPE)] if own is not None else []
    return [*marks, Mark(best, f"{name} (trial {best.number})", "star", BEST)] if best is not None else marks


def _finite(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in complete_trials(study) if all(map(math.isfinite, values_of(trial)))]


def _varied_keys(study: optuna.Study) -> list[str]:
    """The keys that differ between complete trials."""
    values: dict[str, set[str]] = {}
    for trial in _finite(study):
        for key, value in trial.params.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, found in values.items() if len(found) > 1]


def _history(study: optuna.Study, objective: str, index: int, marks: Sequence[Mark]) -> list[Figure]:
    if not _finite(study):
        return []
    figure = visualization.plot_optimization_history(study, target_name=objective)
    figure.update_traces(DOTS, line_shape="hv")
    _add_marks(figure, marks, lambda trial: (trial.number, values_of(trial)[index]))
    return [_laid_out(figure, len(study.trials))]


def _curves(study: optuna.Study, objective: str, marks: Sequence[Mark]) -> list[Figure]:
    steps = [trial.last_step or 0 for trial in study.get_trials(deepcopy=False) if trial.intermediate_values]
    figure = visualization.plot_intermediate_values(study)
    if not figure.data:
        return []
    figure.update_traces(opacity=0.5, line_width=1.2, showlegend=False)
    for mark in marks:
        line = {"width": 4, "color": mark.colour, "dash": "dot" if mark.colour == RECIPE else "solid"}
        selected = {"name": f"Trial{mark.trial.number}"}
        figure.update_traces(selector=selected, name=mark.name, line=line, opacity=1, showlegend=True)
    figure.update_layout(showlegend=True, xaxis_title="epoch, over all stages", yaxis_title=objective)
    return [_laid_out(figure, max(steps))]


def _pareto(study: optuna.Study, objectives: Sequence[str], marks: Sequence[Mark]) -> list[Figure]:
    if len(objectives) < 2 or not _finite(study):
        return []
    figure = visualization.plot_pareto_front(study).update_traces(DOTS)
    _add_marks(figure, marks, values_of)
    return [_laid_out(figure)]


def _importances(study: optuna.Study, objective: str, keys: list[str]) -> list[Figure]:
    if not _can_weigh(study, keys):
        return []
    figure = visualization.plot_param_importances(study, _evaluator(), keys, target_name=objective)
    figure.update_layout(yaxis_title=None)
    figure.update_yaxes(automargin=True)
    return [_laid_out(figure)]


def _slices(study: optuna.Study, objective: str, keys: list[str], marks: Sequence[Mark]) -> list[Figure]:
    """A few keys in each figure, since more would not fit on a page."""
    figures = []
    for start in range(0, len(keys), KEYS_IN_A_ROW):
        row = sorted(keys[start : start + KEYS_IN_A_ROW])
        figure = visualization.plot_slice(study, row, target_name=objective).update_traces(DOTS)
        for key, trace in zip(row, figure.data, strict=True):
            _add_marks(figure, marks, partial(_in_slice, key), trace)
        figures.append(_laid_out(figure))
    return figures


def _contour(study: optuna.Study, objective: str, keys: list[str]) -> list[Figure]:
    """The most important keys in pairs."""
    if len(keys) < 2 or len(_finite(study)) < FEWEST_FOR_CONTOUR:
        return []
    if _can_weigh(study, keys):
        keys = list(get_param_importances(study, evaluator=_evaluator(), params=keys))
    figure = visualization.plot_contour(study, keys[:KEYS_OF_CONTOUR], target_name=objective)
    _laid_out(figure)
    return [figure.update_layout(height=420 if len(keys) == 2 else 800)]


def _parallel_coordinates(study: optuna.Study, objectives: Sequence[str], keys: list[str]) -> list[Figure]:
    if not keys or not _finite(study):
        return []
    figure = visualization.plot_parallel_coordinate(study, keys, target_name=objectives[0])
    # Optuna cuts long names off.
    names = [name.replace("/", "/<br>").replace(".", ".<br>") for name in (*objectives, *sorted(keys))]
    return [_laid_out(figure.update_xaxes(ticktext=names))]


def _can_weigh(study: optuna.Study, keys: Sequence[str]) -> bool:
    return len(_finite(study)) >= FEWEST_FOR_IMPORTANCES and len(keys) >= 2


def _evaluator() -> PedAnovaImportanceEvaluator:
    return PedAnovaImportanceEvaluator(target_quantile=SHARE_OF_GOOD)


def _in_slice(key: str, trial: FrozenTrial) -> tuple[object, float]:
    """Where Optuna draws the trial over the key: a value of a choice as text."""
    value = trial.params[key]
    is_text = isinstance(trial.distributions[key], CategoricalDistribution)
    return repr(value) if is_text else value, values_of(trial)[0]


def _add_marks(
    figure: Figure,
    marks: Sequence[Mark],
    position: Callable[[FrozenTrial], Sequence[object]],
    beside: Scatter | None = None,
) -> None:
    """Mark trials at their `position`, on the axes of the trace `beside`, if it is given; each has one legend entry."""
    axes = {} if beside is None else {"xaxis": beside.xaxis, "yaxis": beside.yaxis}
    for mark in marks:
        x, y = position(mark.trial)
        marker = {"symbol": mark.symbol, "size": 15, "color": mark.colour, "line": {"width": 2, "color": mark.colour}}
        is_named = any(trace.name == mark.name for trace in figure.data)
        figure.add_trace(
            Scatter(x=[x], y=[y], mode="markers", marker=marker, name=mark.name, showlegend=not is_named, **axes)
        )


def _laid_out(figure: Figure, ticks: int = 0) -> Figure:
    """As all figures are; with whole numbers on the first axis if it has few `ticks`."""
    figure.update_layout(LAYOUT, width=None).update_xaxes(exponentformat="e").update_yaxes(exponentformat="e")
    return figure.update_xaxes(dtick=1) if 0 < ticks <= INTEGER_TICKS else figure
