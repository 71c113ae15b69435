"""Figures of how good a model is: confusion, curves, calibration, and a map of the pictures."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from pipeline.evaluation.metrics import ClassCurves
from pipeline.reports.figures import TRAIN, VALID, label_classes, new_figure, plain, plot_labels

MOST_WITH_NUMBERS = 30
MOST_IN_LEGEND, WORST_IN_LEGEND = 10, 5
BEFORE, AFTER = "#d95f02", "#1b9e77"


def confusion_figure(counts: pd.DataFrame, title: str, shares: bool = False) -> Figure:
    """True against predicted: the counts, or with `shares` each row divided by its sum, as colours and, up to 30
    classes, as text."""
    classes = [str(label) for label in counts.index]
    numbers = counts.to_numpy()
    values = numbers / np.maximum(numbers.sum(1, keepdims=True), 1) if shares else numbers
    side = float(np.clip(2.6 + 0.55 * len(classes), 4.2, 11))
    figure, axes = new_figure(side + 0.6, side)
    most = 1.0 if shares else max(numbers.max(), 1)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=most)
    for row, column in np.ndindex(*values.shape) if len(classes) <= MOST_WITH_NUMBERS else ():
        text = _format_share(float(values[row, column]), len(classes)) if shares else str(numbers[row, column])
        colour = "white" if values[row, column] > most / 2 else "black"
        size = 10 if len(classes) <= 12 else 7
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    label_classes(axes, classes)
    axes.set_title(title)
    return figure


def class_curves_figure(curves: Sequence[ClassCurves], classes: Sequence[str], title: str) -> Figure:
    """ROC and precision-recall curves side by side, of some of the `classes`. Of more than 10 curves the five with the
    lowest average precision are named, the others grey."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    figure.suptitle(title)
    roc, precision_recall = figure.subplots(1, 2)
    most = MOST_IN_LEGEND if len(curves) <= MOST_IN_LEGEND else WORST_IN_LEGEND
    worst = sorted(curves, key=lambda one: one.average_precision)[:most]
    kept = {one.label for one in worst}
    named = [one for one in curves if one.label in kept]
    for one in curves:
        if one.label not in kept:
            roc.plot(one.false_positive_rates, one.true_positive_rates, color="#bbbbbb", linewidth=0.8)
            precision_recall.plot(one.recalls, one.precisions, color="#bbbbbb", linewidth=0.8, drawstyle="steps-post")
    names = dict(zip(classes, plot_labels(classes), strict=True))
    for number, one in enumerate(named):
        colour, name = colormaps["tab10"](number % 10), names[one.label]
        roc.plot(one.false_positive_rates, one.true_positive_rates, color=colour, label=f"{name}: {one.roc_auc:.3f}")
        precision_recall.plot(
            one.recalls, one.precisions, color=colour, label=f"{name}: {one.average_precision:.3f}",
            drawstyle="steps-post",
        )  # fmt: skip
    roc.plot([0, 1], [0, 1], color="#cccccc", linestyle=":", zorder=0)
    roc.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    precision_recall.set(xlabel="recall", ylabel="precision")
    which = "" if len(named) == len(curves) else f", lowest {len(named)} of {len(curves)}"
    for axes, title_ in ((roc, f"area under ROC{which}"), (precision_recall, f"average precision{which}")):
        plain(axes)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        if named:
            legend = axes.legend(fontsize=9, title=title_, title_fontsize=9, loc="lower left" if axes is not roc else 4)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


def reliability_figure(
    before: tuple[pd.DataFrame, float], after: tuple[pd.DataFrame, float] | None, title: str
) -> Figure:
    """Accuracy against confidence, above the number of pictures in each bin, before calibration and `after` it, if
    there was any; each as the table of `calibration.reliability` and its calibration error.
    """
    figure = Figure(figsize=(11 if after else 6, 5.2), layout="constrained")
    figure.suptitle(title)
    sides = [("before temperature scaling" if after else "not calibrated", *before, BEFORE)]
    sides += [("after temperature scaling", *after, AFTER)] if after else []
    upper, lower = figure.subplots(2, len(sides), sharex=True, height_ratios=[4, 1], squeeze=False)
    for axes, counts, (name, bins, ece, colour) in zip(upper, lower, sides, strict=True):
        there = bins[bins["pictures"] > 0]
        axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="perfect calibration")
        axes.bar(there["low"], there["accuracy"], (there["high"] - there["low"]), align="edge", color=colour, alpha=0.5)
        axes.scatter(there["confidence"], there["accuracy"], color=colour, zorder=3, label="bin's mean")
        axes.set(title=f"{name}, ECE {ece:.4f}", ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
        axes.legend(fontsize=9, loc="upper left")
        counts.bar(bins["low"], bins["pictures"], (bins["high"] - bins["low"]), align="edge", color="#aaaaaa")
        counts.set(xlabel="confidence of the prediction", ylabel="pictures")
        plain(axes)
        plain(counts)
    return figure


def operating_figure(points: pd.DataFrame, label: str, classes: Sequence[str]) -> Figure:
    """Precision, recall and the share of pictures flagged over the threshold on the probability of `label`."""
    figure, axes = new_figure(8, 4.2)
    for column, colour, style in (("precision", AFTER, "-"), ("recall", VALID, "-"), ("flagged", TRAIN, "--")):
        shown = "share flagged" if column == "flagged" else column
        there = points.dropna(subset=[column])
        axes.plot(there["threshold"], there[column], color=colour, linestyle=style, marker="o", ms=4, label=shown)
    name = plot_labels(classes)[list(classes).index(label)]
    axes.set_xlabel(f"threshold: flag from this calibrated probability of {name} up", parse_math=False)
    axes.set(ylim=(0, 1.02), xlim=(0, 1))
    axes.legend(fontsize=9)
    return figure


def embedding_figure(
    positions: npt.NDArray[np.float64], labels: Sequence[str], wrong: npt.NDArray[np.bool_], classes: Sequence[str],
    title: str,
) -> Figure:  # fmt: skip
    """Pictures as dots at `positions` (pictures, 2), coloured by class; wrong predictions are ringed in black."""
    figure, axes = new_figure(10, 6.2)
    names = plot_labels(list(classes))
    colours = colormaps["tab10" if len(classes) <= 10 else "gist_rainbow"]
    is_of = np.asarray(labels)
    for index, (label, name) in enumerate(zip(classes, names, strict=True)):
        chosen = is_of == label
        colour = colours(index) if len(classes) <= 10 else colours(index / max(len(classes) - 1, 1))
        axes.scatter(positions[chosen, 0], positions[chosen, 1], s=22, color=colour, alpha=0.6, linewidth=0, label=name)
    axes.scatter(
        positions[wrong, 0], positions[wrong, 1], s=55, facecolor="none", edgecolor="black", linewidth=1, label="wrong"
    )
    axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second principal component")
    axes.set_title(title, fontsize=10)
    columns = -(-(len(classes) + 1) // 24)
    size = 9 if len(classes) <= 24 else 7
    legend = figure.legend(loc="outside right upper", fontsize=size, ncols=min(columns, 4), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _format_share(value: float, classes: int) -> str:
    return f"{value:.0%}" if classes <= 12 else f"{100 * value:.0f}"
