"""Figures of training. Each function gives a figure and draws nothing on a screen."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.lr_finder import Curve

TRAIN, VALID = "#7a7a7a", "#d1495b"
RULE_COLOURS = {
    "valley": "#1b9e77",
    "steep": "#d95f02",
    "slide": "#7570b3",
    "minimum": "#e7298a",
    "below_rise": "#666666",
}
GROUP_COLOURS = {"early": "#2c7fb8", "late": "#41b6c4", "head": "#253494"}


def lr_find_figure(curve: Curve, suggestions: Mapping[str, float | None], chosen: str) -> Figure:
    """Loss over rate, with every suggestion marked and the chosen one named in the legend."""
    figure, axes = new_figure(8, 4.5)
    axes.plot(curve.rates, curve.losses, color=TRAIN, alpha=0.3, linewidth=1, label="batch loss")
    axes.plot(curve.rates, curve.smoothed, color="black", linewidth=1.8, label="smoothed")
    for name, rate in suggestions.items():
        if rate is not None:
            loss = float(np.interp(np.log(rate), np.log(curve.rates), curve.smoothed))
            label = f"{name}: {rate:.2g}" + (" (taken)" if name == chosen else "")
            size = 110 if name == chosen else 60
            axes.scatter([rate], [loss], s=size, color=RULE_COLOURS[name], zorder=3, label=label, edgecolor="white")
    highest = max(curve.smoothed[: len(curve.smoothed) // 2 + 1].max(), curve.smoothed.min())
    spread = max(highest - curve.smoothed.min(), 1e-3)
    axes.set_ylim(curve.smoothed.min() - 0.3 * spread, highest + 0.8 * spread)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("training loss")
    axes.set_title("The rate to take is one where the loss still falls, not where it is lowest")
    axes.legend(loc="lower left", fontsize=8)
    return figure


def training_figure(epochs: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """A stage's losses and accuracy by epoch, above the rate of each layer group by step.

    `epochs` and `steps` are the tables of `history`.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    losses.plot(steps["step"], steps["loss"], color=TRAIN, alpha=0.3, linewidth=1, label="train, by batch")
    losses.plot(epochs["step"], epochs["train_loss"], color=TRAIN, marker="o", label="train")
    losses.plot(epochs["step"], epochs["valid_loss"], color=VALID, marker="o", label="valid")
    for row in epochs.itertuples():
        losses.annotate(
            f"{row.valid_accuracy:.1%}", (row.step, row.valid_loss), (0, 6), textcoords="offset points",
            ha="center", fontsize=8, color=VALID,
        )  # fmt: skip
    losses.set_ylim(0, 1.3 * max(epochs["train_loss"].max(), epochs["valid_loss"].max()))
    losses.set_ylabel("loss (valid accuracy written in)")
    losses.legend(fontsize=8)
    for group, colour in GROUP_COLOURS.items():
        if group in steps:
            rates.plot(steps["step"], steps[group], color=colour, label=group)
    rates.set_yscale("log")
    rates.set_ylim(steps.filter(items=list(GROUP_COLOURS)).to_numpy().max() * np.array([1e-4, 2]))
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.legend(fontsize=8, title="layer group")
    for axes in (losses, rates):
        plain(axes)
    return figure


def learning_figure(epochs: pd.DataFrame) -> Figure:
    """Training and validation loss by epoch over all stages, above the validation accuracy.

    `epochs` is the table of `history.join_epochs`.
    """
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for column, colour, label in (("train_loss", TRAIN, "train"), ("valid_loss", VALID, "valid")):
        losses.plot(epochs["epoch"], epochs[column], color=colour, marker="o", label=label)
    accuracies.plot(epochs["epoch"], epochs["valid_accuracy"], color=VALID, marker="o")
    for (stage, phase), part in epochs.groupby(["stage", "phase"], sort=False):
        start = part["epoch"].min() - 0.5
        name = f"{stage}, {phase}" if phase else str(stage)
        losses.annotate(
            name, (start, 1), (4, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
        )
        for axes in (losses, accuracies):
            axes.axvline(start, color="#cccccc", linewidth=1, zorder=0)
    losses.set_ylim(0, 1.1 * epochs[["train_loss", "valid_loss"]].to_numpy().max())
    losses.set_ylabel("loss")
    losses.legend(fontsize=9)
    accuracies.set_ylabel("valid accuracy")
    accuracies.set_xlabel("epoch (training losses are on augmented pictures, but for stored activations)")
    accuracies.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (losses, accuracies):
        plain(axes)
    return figure


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this many inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Take away what shows no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(False)
