"""What the figures of a study share: colours, how the best trial and the recipe's own are marked, and what is shown of
values of which some are far out."""

from collections.abc import Callable, Sequence

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from pipeline.figures import VALID
from pipeline.sweep.trials import best_trial, recipes_trial

COMPLETE = "#2c7fb8"
MARGIN = 0.08
FEWEST_FOR_QUARTILES = 5


def shown_range(values: Sequence[float], is_maximised: bool) -> tuple[float, float]:
    """The ends of an axis for these values: the best is on it, and of bad ones those that are not far out by Tukey's
    rule, one and a half times the distance of the quartiles. One trial gone wrong thus does not flatten all others."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    if len(finite) >= FEWEST_FOR_QUARTILES:
        first, third = np.quantile(finite, [0.25, 0.75])
        reach = 1.5 * (third - first)
        inside = finite[finite >= first - reach] if is_maximised else finite[finite <= third + reach]
        low, high = (float(inside.min()), high) if is_maximised else (low, float(inside.max()))
    margin = MARGIN * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def scatter_within(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    limits: tuple[float, float],
    colour: str,
    fill: str,
    label: str | None,
) -> None:
    """Dots at (x, y); those beyond the limits of y as arrows at the edge."""
    if not points:
        return
    x, y = np.array(points).T
    inside = (y >= limits[0]) & (y <= limits[1])
    axes.scatter(x[inside], y[inside], s=30, color=colour, facecolor=fill, label=label, zorder=2)
    for out, edge, shape in ((y < limits[0], 0.02, "v"), (y > limits[1], 0.98, "^")):
        if out.any():
            heights = np.full(out.sum(), edge)
            axes.plot(x[out], heights, shape, color=colour, mfc=fill, ms=5.5, transform=axes.get_xaxis_transform())


def name_of_best(study: optuna.Study) -> str:
    """Of one objective there is a best trial, of two one that is proposed."""
    return "best" if len(study.directions) == 1 else "proposed"


def mark_best_and_recipe(
    axes: Axes, study: optuna.Study, place: Callable[[FrozenTrial], Sequence[float]], named: bool = True
) -> None:
    """A star on the best trial and a diamond round the recipe's own, where each is by `place`."""
    marks = (
        (recipes_trial(study), "D", 90, "none", "black", "the recipe"),
        (best_trial(study), "*", 150, VALID, "white", name_of_best(study)),
    )
    for trial, shape, size, fill, edge, name in marks:
        if trial is not None and np.isfinite(place(trial)).all():
            label = f"{name} (trial {trial.number})" if named else None
            x, y = place(trial)
            axes.scatter([x], [y], s=size, marker=shape, facecolor=fill, edgecolor=edge, label=label, zorder=5)


def legend_above(figure: Figure, columns: int) -> None:
    """Name what all panels show, each once, above them; nothing where nothing has a name."""
    named = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for some in named for handle, label in zip(*some, strict=True)}
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=columns, fontsize=9, frameon=False
        )
