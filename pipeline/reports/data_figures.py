"""A set of pictures before training: tables, their figure, and samples of each class as the network will see them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.data.augment import Augmentation, augment
from pipeline.data.batches import fetch_pixels
from pipeline.data.decode import Pixels
from pipeline.data.manifest import Manifest, class_counts
from pipeline.reports.figures import plot_labels
from pipeline.reports.pictures import in_colour
from pipeline.system.arrays import Rows
from pipeline.system.tables import write_table

SPLIT_COLOURS = {"train": "#7a7a7a", "valid": "#d1495b", "test": "#2c7fb8"}
MOST_CLASSES, MOST_SAMPLED_CLASSES, SAMPLES_PER_CLASS, VIEWS = 40, 12, 6, 5


def write_manifest_figures(manifest: Manifest, pixels: Pixels, folder: Path) -> None:
    """Write `manifest/classes.csv`, `manifest/sizes.csv`, `figures/manifest.png` and `figures/samples.png`."""
    for name in ("manifest", "figures"):
        (folder / name).mkdir(exist_ok=True)
    counts, sizes = class_counts(manifest), size_table(manifest)
    write_table(counts, folder / "manifest" / "classes.csv", with_index=True)
    write_table(sizes, folder / "manifest" / "sizes.csv")
    manifest_figure(counts, sizes).savefig(folder / "figures" / "manifest.png", dpi=110)
    samples_figure(manifest, pixels).savefig(folder / "figures" / "samples.png", dpi=110)


def size_table(manifest: Manifest) -> pd.DataFrame:
    """How many pictures there are of each size and mode: `width_px`, `height_px`, `mode`, `pictures`, most first."""
    counts = manifest.table.groupby(["width_px", "height_px", "mode"]).size()
    return counts.rename("pictures").reset_index().sort_values("pictures", ascending=False, kind="stable")


def manifest_figure(counts: pd.DataFrame, sizes: pd.DataFrame) -> Figure:
    """Pictures by class and split, by size, and by mode; of more than MOST_CLASSES classes the largest and smallest."""
    counts = counts.set_axis(plot_labels([str(label) for label in counts.index]))
    shown = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    title = "Pictures by class"
    if len(shown) > MOST_CLASSES:
        title += f": the {MOST_CLASSES // 2} largest and smallest of {len(shown)}"
        shown = pd.concat([shown.iloc[: MOST_CLASSES // 2], shown.iloc[-MOST_CLASSES // 2 :]])
    figure = Figure(figsize=(11, max(4.0, 0.24 * len(shown) + 1.5)), layout="constrained")
    by_class, by_size, by_mode = figure.subplots(1, 3, width_ratios=[3, 3, 1.3])
    _stack(by_class, shown)
    by_class.set_title(title, fontsize=10)
    of_size = sizes.groupby(["width_px", "height_px"], as_index=False)["pictures"].sum()
    area = 12 + 200 * of_size["pictures"] / of_size["pictures"].max()
    by_size.scatter(of_size["width_px"], of_size["height_px"], s=area, color="#41b6c4", alpha=0.5, edgecolor="white")
    by_size.set_xscale("log")
    by_size.set_yscale("log")
    by_size.set_xlabel("width, px")
    by_size.set_ylabel("height, px")
    by_size.set_title("by size", fontsize=10)
    of_mode = sizes.groupby("mode")["pictures"].sum().sort_values(ascending=False)
    by_mode.bar(of_mode.index, of_mode, color="#41b6c4")
    by_mode.set_title("by mode", fontsize=10)
    for axes in (by_class, by_size, by_mode):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def samples_figure(manifest: Manifest, pixels: Pixels) -> Figure:
    """Training pictures of each class, a class a row, exactly as they are stored for the network."""
    rows = _sample_rows(manifest, SAMPLES_PER_CLASS)
    grid = [[pixels[int(row)] for row in chosen] for chosen in rows.values()]
    return _grid(_labels(manifest, rows), grid, "Training pictures as the network sees them", [])


def augmented_figure(manifest: Manifest, pixels: Pixels, augmentation: Augmentation, seed: int) -> Figure:
    """A training picture of each class as it is, and beside it VIEWS times augmented as in training."""
    rows = {label: chosen[0] for label, chosen in _sample_rows(manifest, 1).items()}
    images = fetch_pixels(pixels, torch.device("cpu"))(np.array(list(rows.values()), dtype=np.int64))
    generator = torch.Generator().manual_seed(seed)
    seen = [images, *(augment(images, augmentation, generator) for _ in range(VIEWS))]
    squares = [(batch * 255).round().byte().permute(0, 2, 3, 1).numpy() for batch in seen]
    grid = [[batch[index] for batch in squares] for index in range(len(rows))]
    headings = ["as it is", *("augmented" for _ in range(VIEWS))]
    return _grid(_labels(manifest, rows), grid, "Training pictures as the network sees them", headings)


def _labels(manifest: Manifest, chosen: Iterable[str]) -> list[str]:
    """The names of the `chosen` classes as figures show them."""
    names = dict(zip(manifest.classes, plot_labels(manifest.classes), strict=True))
    return [names[label] for label in chosen]


def _sample_rows(manifest: Manifest, count: int) -> dict[str, Rows]:
    """Up to `count` rows of the training split for the first MOST_SAMPLED_CLASSES classes each, chosen by content."""
    train = manifest.table.loc[manifest.table["split"] == "train", ["label", "hash"]]
    wanted = train[train["label"].isin(manifest.classes[:MOST_SAMPLED_CLASSES])].sort_values("hash")
    chosen = wanted.groupby("label").head(count)
    return {str(label): part.index.to_numpy(dtype=np.int64) for label, part in chosen.groupby("label") if len(part)}


def _grid(labels: list[str], grid: list[list[Pixels]], title: str, headings: list[str]) -> Figure:
    columns = max(len(line) for line in grid)
    figure = Figure(figsize=(1.7 * columns + 0.6, 1.8 * len(grid) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(grid), columns, squeeze=False)
    for line, label, squares in zip(axes, labels, grid, strict=True):
        for cell, square in zip(line, squares, strict=False):
            cell.imshow(in_colour(square))
        for cell in line:
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=9, parse_math=False)
    for cell, heading in zip(axes[0], headings, strict=False):
        cell.set_title(heading, fontsize=9)
    return figure


def _stack(axes: Axes, counts: pd.DataFrame) -> None:
    heights, left = np.arange(len(counts)), np.zeros(len(counts))
    for split in counts:
        axes.barh(heights, counts[split], left=left, color=SPLIT_COLOURS[str(split)], label=str(split))
        left = left + counts[split].to_numpy()
    axes.set_yticks(heights, list(counts.index), fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.legend(fontsize=8)
