"""Pictures where people look rather than read. Each function gives a figure and draws nothing on a screen."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.decode import Pixels
from pipeline.lr_finder import Curve

TRAIN, VALID = "#7a7a7a", "#d1495b"
RULE_COLOURS = {"valley": "#1b9e77", "steep": "#d95f02", "slide": "#7570b3", "minimum": "#e7298a"}
MOST_WITH_COUNTS, MOST_WITH_SHARES = 30, 12
GROUP_COLOURS = {"early": "#2c7fb8", "late": "#41b6c4", "head": "#253494"}


def lr_find_figure(curve: Curve, suggestions: Mapping[str, float | None], chosen: str) -> Figure:
    """Loss over rate, with every suggestion marked and the chosen one named in the legend."""
    figure, axes = _figure(8, 4.5)
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
        _plain(axes)
    return figure


def confusion_figure(counts: pd.DataFrame, title: str) -> Figure:
    """True against predicted: shares of each true class as colour, counts as text."""
    classes = list(counts.index)
    side = min(3 + 0.6 * len(classes), 18)
    figure, axes = _figure(side + 0.8, side)
    numbers = counts.to_numpy()
    shares = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape) if len(classes) <= MOST_WITH_COUNTS else ():
        share = f"\n{shares[row, column]:.0%}" if len(classes) <= MOST_WITH_SHARES else ""
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{numbers[row, column]}{share}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 3 else 0)
    axes.set_yticks(range(len(classes)), classes)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    return figure


def pictures_figure(pixels: Sequence[Pixels], captions: Sequence[str], title: str) -> Figure:
    """Pictures (height, width, 1 or 3) in a grid of four columns, each under its caption."""
    columns = min(4, max(len(pixels), 1))
    rows = max(-(-len(pixels) // columns), 1)
    figure = Figure(figsize=(2.6 * columns, 3.0 * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, picture, caption in zip(figure.axes, pixels, captions, strict=False):
        axes.imshow(picture.repeat(3, axis=-1) if picture.shape[-1] == 1 else picture)
        axes.set_title(caption, fontsize=9, parse_math=False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(False)
