"""The LR finder's curve, and its band over seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from pipeline.reports.figures import RULE_COLOURS, TRAIN, new_figure
from pipeline.training.heads.lr_band import Band
from pipeline.training.lr_finder import Curve


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


def band_figure(
    band: Band, suggestions: Mapping[str, float | None], chosen: str, by_seed: Sequence[float], seeds: int
) -> Figure:
    """Loss over rate: the median of the seeds and where four in five lie; the suggestions of the median curve, and
    those of each seed by the `chosen` rule as ticks."""
    figure, axes = new_figure(10, 4.5)
    lowest = band.middle.min()
    highest = max(band.middle[: len(band.middle) // 2 + 1].max(), lowest)
    spread = max(highest - lowest, 1e-3)
    top = highest + 0.8 * spread
    high = np.minimum(band.high, 2 * abs(top) + band.middle)  # infinite where seeds have exploded
    axes.fill_between(band.rates, band.low, high, color=TRAIN, alpha=0.3, linewidth=0, label="10 to 90 % of the seeds")
    axes.plot(band.rates, band.middle, color="black", linewidth=1.8, label=f"median of {seeds} seeds")
    for name, rate in suggestions.items():
        if rate is not None:
            loss = float(np.interp(np.log(rate), np.log(band.rates), band.middle))
            label = f"{name}: {rate:.2g}" + (" (taken)" if name == chosen else "")
            size = 110 if name == chosen else 60
            axes.scatter([rate], [loss], s=size, color=RULE_COLOURS[name], zorder=3, label=label, edgecolor="white")
    bottom = min(lowest, band.low.min()) - 0.3 * spread
    if by_seed:
        heights = np.full(len(by_seed), bottom + 0.03 * (top - bottom))
        axes.plot(
            by_seed, heights, "|", color=RULE_COLOURS[chosen], markersize=12, markeredgewidth=1.5,
            label=f"{chosen} of each seed: {min(by_seed):.2g} to {max(by_seed):.2g}",
        )  # fmt: skip
    axes.set_ylim(bottom, top)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("smoothed training loss")
    axes.set_title("How far the finder's curve, and its suggestion, depend on the seed")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    return figure
