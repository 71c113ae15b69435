"""Figures of training: a stage's losses and rates, and the losses of all stages."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.reports.figures import GROUP_COLOURS, KEPT, TRAIN, VALID, plain


def training_figure(epochs: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """A stage's losses and accuracy by epoch, above the rate of each layer group by step.

    `epochs` and `steps` are the tables of `history`; the epochs whose weights are kept are marked.
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
    _mark_kept(losses, epochs, "step", "valid_loss")
    losses.set_ylim(0, 1.3 * max(epochs["train_loss"].max(), epochs["valid_loss"].max()))
    losses.set_ylabel("loss (valid accuracy written in)")
    losses.legend(fontsize=8)
    for group, colour in GROUP_COLOURS.items():
        if group in steps:
            trained = steps[steps[group].notna()]  # from where it was thawed
            rates.plot(trained["step"], trained[group], color=colour, label=group)
    rates.set_yscale("log")
    rates.set_ylim(steps.filter(items=list(GROUP_COLOURS)).max().max() * np.array([1e-4, 2]))
    rates.set_ylabel("learning rate")
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.legend(fontsize=8, title="layer group")
    for axes in (losses, rates):
        plain(axes)
    return figure


def learning_figure(epochs: pd.DataFrame) -> Figure:
    """Training and validation loss by epoch over all stages, above the validation accuracy.

    `epochs` is the joined table of the stages' epochs, with `stage` and `phase`; those that it calls kept are marked.
    """
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for column, colour, label in (("train_loss", TRAIN, "train"), ("valid_loss", VALID, "valid")):
        losses.plot(epochs["epoch"], epochs[column], color=colour, marker="o", label=label)
    accuracies.plot(epochs["epoch"], epochs["valid_accuracy"], color=VALID, marker="o")
    _mark_kept(accuracies, epochs, "epoch", "valid_accuracy")
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


def _mark_kept(axes: Axes, epochs: pd.DataFrame, x: str, y: str) -> None:
    """A ring around each epoch whose weights the stage keeps, or averages."""
    if "kept" in epochs:  # runs of earlier versions do not say
        kept = epochs[epochs["kept"].eq(True)]
        axes.plot(kept[x], kept[y], "o", color=KEPT, fillstyle="none", markersize=12, label="kept")
