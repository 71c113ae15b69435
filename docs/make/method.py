"""The figures and tables of docs/method.md, from the runs of `experiments`."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from docs.make.experiments import Experiments
from docs.make.pages import markdown_table
from docs.make.project import Copy
from pipeline.reports.figures import GROUP_COLOURS, RULE_COLOURS, TRAIN, VALID, plain
from pipeline.system.tables import read_table
from pipeline.tracking import RunRef

DPI = 90
BLOCKS = ("restarts", "overfitting", "frozen", "ratios", "sizes", "tta", "pictures")


def make_method(copy: Copy, folder: Path) -> dict[str, str]:
    """Write the figures into `folder`; gives the tables by the name of their block."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = Experiments(copy)
    makers = (
        copy_restarts, draw_overfitting, compare_speeds, draw_ratios, draw_sizes, compare_views,
        describe_pictures,
    )  # fmt: skip
    draw_finder(runs, folder)
    shutil.copy(runs.file(runs.head, "figures/augmented.png"), folder / "augmented.png")
    shutil.copy(runs.file(runs.finder, "figures/lr_find.png"), folder / "lr_find.png")
    return {name: make(runs, folder) for name, make in zip(BLOCKS, makers, strict=True)}


def draw_finder(runs: Experiments, folder: Path) -> None:
    """The finder's curve, above what heads come to that are trained at each rate."""
    curve, rates = read_table(runs.file(runs.finder, "curve.csv")), runs.rates
    suggested = runs.finder.metrics["suggestion/lr"]
    lowest = float(curve["lr"][curve["smoothed_loss"].idxmin()])
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    test, trained = figure.subplots(2, 1, sharex=True)
    test.plot(curve["lr"], curve["loss"], color=TRAIN, alpha=0.3, linewidth=1, label="batch loss")
    test.plot(curve["lr"], curve["smoothed_loss"], color="black", linewidth=1.8, label="smoothed")
    test.set_ylim(0, 2 * float(curve["smoothed_loss"].iloc[:10].mean()))
    test.set_ylabel("loss in the range test")
    sound = rates[rates["valid_loss_mean"].notna()]
    trained.errorbar(
        sound["lr"], sound["valid_loss_mean"], sound["valid_loss_std"], fmt="o", color=VALID, ecolor="#cccccc",
        markersize=4, label="validation loss of heads trained at this rate",
    )  # fmt: skip
    trained.set_yscale("log")
    trained.set_ylabel("validation loss after 5 epochs")
    trained.set_xlabel("learning rate of the head")
    for axes in (test, trained):
        axes.set_xscale("log")
        axes.axvline(suggested, color=RULE_COLOURS["valley"], label=f"suggested: {suggested:.1e}")
        axes.axvline(lowest, color=RULE_COLOURS["minimum"], linestyle="--", label=f"lowest point: {lowest:.1e}")
        axes.legend(fontsize=8, frameon=False)
        plain(axes)
    figure.savefig(folder / "finder.png", dpi=DPI)


def copy_restarts(runs: Experiments, folder: Path) -> str:
    """The stage's own figure; a table of the ends of its cycles."""
    shutil.copy(runs.file(runs.restarts, "figures/training.png"), folder / "restarts.png")
    epochs = read_table(runs.file(runs.restarts, "epochs.csv"))
    ends = epochs.groupby("cycle").last()
    lengths = epochs.groupby("cycle").size()
    rows = [
        (
            str(number),
            str(lengths[cycle]),
            f"{row['train_loss']:.3f}",
            f"{row['valid_loss']:.3f}",
            f"{row['valid_accuracy']:.3f}",
        )
        for number, (cycle, row) in enumerate(ends.iterrows(), 1)
    ]
    return markdown_table(("cycle", "epochs", "train loss at its end", "valid loss", "valid accuracy"), rows)


def draw_overfitting(runs: Experiments, folder: Path) -> str:
    """Training and validation loss of two heads, the gap between them shaded; a table of their ends."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    rows = []
    for axes, (name, ref) in zip(figure.subplots(1, 2, sharey=True), runs.overfitting.items(), strict=True):
        epochs = read_table(runs.file(ref, "epochs.csv"))
        numbers, train, valid = (epochs[column] for column in ("epoch", "train_loss", "valid_loss"))
        axes.plot(numbers, train, color=TRAIN, label="train")
        axes.plot(numbers, valid, color=VALID, label="valid")
        axes.fill_between(numbers, train, valid, where=valid > train, color=VALID, alpha=0.15, label="gap")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.legend(fontsize=8, frameon=False)
        plain(axes)
        ends = train.iloc[-1], valid.iloc[-1]
        rows.append((name, f"{ends[0]:.3f}", f"{ends[1]:.3f}", f"{valid.min():.3f}", f"{ends[1] - ends[0]:.3f}"))
    figure.axes[0].set_ylabel("loss")
    figure.savefig(folder / "overfitting.png", dpi=DPI)
    return markdown_table(("head trained on", "train loss", "valid loss", "lowest valid loss", "`overfit/gap`"), rows)


def compare_speeds(runs: Experiments, folder: Path) -> str:
    """Images per second of the three ways to train."""
    ways = (
        ("the head, on stored activations", runs.head), ("the head, body frozen, pictures augmented", runs.live),
        ("all layers, pictures augmented", runs.restarts),
    )  # fmt: skip
    speeds = {name: read_table(runs.file(ref, "epochs.csv"))["images_per_second"].median() for name, ref in ways}
    slowest = min(speeds.values())
    rows = [(name, f"{speed:,.0f}", f"{speed / slowest:,.0f}") for name, speed in speeds.items()]
    return markdown_table(("what is trained", "images/s", "times as fast"), rows)


def draw_ratios(runs: Experiments, folder: Path) -> str:
    """How far each layer group went, by the ratio of their rates; a table with what it came to."""
    moved = {ratio: runs.movement(runs.head, ref) for ratio, ref in runs.ratios.items()}
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(GROUP_COLOURS)
    for number, (group, colour) in enumerate(GROUP_COLOURS.items()):
        heights = [100 * groups[group] for groups in moved.values()]
        axes.bar(np.arange(len(moved)) + (number - 1) * width, heights, width, color=colour, label=group)
    axes.set_xticks(range(len(moved)), [f"ratio {ratio}" for ratio in moved])
    axes.set_yscale("log")
    axes.set_ylabel("change of the weights, % of their norm")
    axes.legend(fontsize=8, frameon=False, title="layer group", loc="upper left", bbox_to_anchor=(1, 1))
    plain(axes)
    figure.savefig(folder / "ratios.png", dpi=DPI)
    rows = []
    for ratio, ref in runs.ratios.items():
        last = _last_epoch(runs, ref)
        rows.append((str(ratio), f"{last['train_loss']:.3f}", f"{last['valid_loss']:.3f}"))
    return markdown_table(("`lr_ratio`", "train loss", "valid loss"), rows)


def draw_sizes(runs: Experiments, folder: Path) -> str:
    """Validation accuracy of heads on frozen features, by image size, with the seconds that the features took."""
    rows, means, spreads = [], [], []
    for size, (start, heads) in runs.sizes.items():
        accuracies = [_last_epoch(runs, ref)["valid_accuracy"] for ref in heads]
        means.append(float(np.mean(accuracies)))
        spreads.append(float(np.std(accuracies, ddof=1)))
        losses = np.mean([_last_epoch(runs, ref)["valid_loss"] for ref in heads])
        rows.append((f"{size} px", f"{means[-1]:.3f} ± {spreads[-1]:.3f}", f"{losses:.3f}", f"{start.seconds:.0f} s"))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(list(runs.sizes), means, spreads, marker="o", color=VALID, capsize=3)
    axes.set_xlabel("image size, px")
    axes.set_ylabel("valid accuracy of the head")
    axes.set_xticks(list(runs.sizes))
    plain(axes)
    figure.savefig(folder / "sizes.png", dpi=DPI)
    return markdown_table(("size", "valid accuracy, three seeds", "valid loss", "precompute took"), rows)


def compare_views(runs: Experiments, folder: Path) -> str:
    """The evaluated split with and without test-time augmentation."""
    found = runs.evaluated.metrics
    split = "test" if "test/accuracy" in found else "valid"
    rows = [
        (name, f"{found[f'{split}/{prefix}accuracy']:.3f}", f"{found[f'{split}/{prefix}loss']:.3f}")
        for name, prefix in (("each picture once", ""), ("with four further views", "tta_"))
    ]
    return markdown_table((f"{split} pictures", "accuracy", "loss"), rows)


def describe_pictures(runs: Experiments, folder: Path) -> str:
    """What the figures were made with, as a sentence."""
    counts = read_table(runs.file(runs.start, "manifest/classes.csv"))
    table = counts.set_index(counts.columns[0])
    splits = ", ".join(f"{name} {int(table[name].sum()):,}" for name in table)
    return f"Pictures: {' and '.join(map(str, table.index))}; {splits}."


def _last_epoch(runs: Experiments, ref: RunRef) -> "pd.Series[float]":
    return read_table(runs.file(ref, "epochs.csv")).iloc[-1]
