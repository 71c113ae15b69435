"""Figures of several runs at once; each function gives a figure and draws nothing on a screen."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

MOST_WITH_NUMBERS = 30


def curves_figure(curves: Mapping[str, Mapping[str, pd.DataFrame]], metrics: Sequence[str]) -> Figure:
    """A panel for each of `metrics`, in which every run (by name) has one line of `value` over `step`."""
    figure = Figure(figsize=(9, 2.8 * len(metrics) + 0.6), layout="constrained")
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (name, of_run) in enumerate(curves.items()):
            if metric in of_run:
                points, colour = of_run[metric], colours[place % len(colours)]
                width = 3.5 if place == 0 else 1.5  # where curves lie on one another both are seen
                axes.plot(points["step"], points["value"], color=colour, label=name, linewidth=width, marker="o")
        axes.set_ylabel(metric)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5")
    panels[-1].set_xlabel("step, over all stages")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = {line.get_label(): line for axes in panels for line in axes.lines}
    named = [handles[name] for name in curves if name in handles]
    for text in figure.legend(handles=named, loc="outside upper center", ncols=min(len(named), 3) or 1).get_texts():
        text.set_parse_math(False)
    return figure


def confusion_difference_figure(difference: pd.DataFrame) -> Figure:
    """True against predicted: more pictures than the first run has in red, fewer in blue; the diagonal is what is
    right, where more is better."""
    classes = [str(label) for label in difference.index]
    side = min(3 + 0.6 * len(classes), 16)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    numbers = difference.to_numpy()
    most = max(int(np.abs(numbers).max()), 1)
    axes.imshow(numbers, cmap="RdBu_r", vmin=-most, vmax=most)
    for row, column in np.ndindex(*numbers.shape) if len(classes) <= MOST_WITH_NUMBERS else ():
        colour = "white" if abs(numbers[row, column]) > 0.6 * most else "black"
        axes.text(column, row, f"{numbers[row, column]:+d}".replace("+0", "0"), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 3 else 0)
    axes.set_yticks(range(len(classes)), classes)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    return figure
