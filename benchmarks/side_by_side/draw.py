"""Draws the ratios of results files as bars, and prints their tables.

python -m benchmarks.side_by_side.draw benchmarks/results/NAME.json … [--figure docs/benchmarks.png] [--groups TEXT]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from benchmarks.side_by_side.results import Comparison, read_results, tables


def draw(comparisons: Sequence[Comparison]) -> Drawing:
    """A panel for each group, with a bar for each comparison, on a logarithmic axis, and a mark at what it should reach
    at least."""
    groups = {
        name: [one for one in comparisons if one.group == name] for name in dict.fromkeys(c.group for c in comparisons)
    }
    drawing = Drawing(figsize=(9, 0.35 * len(comparisons) + 0.9 * len(groups)), layout="constrained")
    heights = [len(members) + 1 for members in groups.values()]
    panels = drawing.subplots(len(groups), 1, squeeze=False, height_ratios=heights)
    for axes, (name, members) in zip(panels[:, 0], groups.items(), strict=True):
        _draw_group(axes, members)
        axes.set_title(name, loc="left", fontsize=10)
    drawing.supxlabel("times as fast, wall time; red: the least that it should be", fontsize=9)
    return drawing


def _draw_group(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    places = list(range(len(comparisons), 0, -1))
    axes.barh(places, [one.ratio for one in comparisons], color="#4c78a8", height=0.65)
    for place, one in zip(places, comparisons, strict=True):
        axes.annotate(f" {one.ratio:.3g}", (one.ratio, place), va="center", fontsize=9)
        if one.target is not None:
            axes.plot([one.target] * 2, [place - 0.42, place + 0.42], color="#e45756", linewidth=2)
    axes.set_yticks(places, [f"{one.what}, {one.of}" if one.of else one.what for one in comparisons], fontsize=9)
    axes.set_xscale("log")
    ratios = [one.ratio for one in comparisons]
    axes.set_xlim(min(0.5, min(ratios) / 1.5), max(ratios) * 3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Print, and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, help="the file to draw into")
    parser.add_argument("--groups", default="", help="draw those whose names begin so")
    given = parser.parse_args()
    found = [read_results(path) for path in given.files]
    for path, (comparisons, figures, facts) in zip(given.files, found, strict=True):
        print(f"{path}: {facts['date']}, {facts['machine']}\n\n{tables(comparisons, figures)}")
    if given.figure:
        comparisons = [one for of_file, _, _ in found for one in of_file if one.group.startswith(given.groups)]
        draw(comparisons).savefig(given.figure, dpi=110)


if __name__ == "__main__":
    main()
