"""Draws the ratios of a results file as bars.

python -m benchmarks.side_by_side.draw benchmarks/results/NAME.json docs/benchmarks.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Drawing

from benchmarks.side_by_side.results import Comparison, read_results


def draw(comparisons: Sequence[Comparison]) -> Drawing:
    """A bar for each comparison, on a logarithmic axis, with a mark at what it should reach at least."""
    drawing = Drawing(figsize=(9, 0.4 * len(comparisons) + 1.2), layout="constrained")
    axes = drawing.subplots()
    places = list(range(len(comparisons), 0, -1))
    axes.barh(places, [one.ratio for one in comparisons], color="#4c78a8", height=0.65)
    for place, one in zip(places, comparisons, strict=True):
        axes.annotate(f" {one.ratio:.3g}", (one.ratio, place), va="center", fontsize=9)
        if one.target is not None:
            axes.plot([one.target] * 2, [place - 0.42, place + 0.42], color="#e45756", linewidth=2)
    axes.set_yticks(places, [f"{one.what}, {one.of}" if one.of else one.what for one in comparisons], fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(right=max(one.ratio for one in comparisons) * 3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast, wall time; red: the least that it should be")
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


if __name__ == "__main__":
    draw(read_results(Path(sys.argv[1]))[0]).savefig(sys.argv[2], dpi=110)
