"""Figures of many heads at once. Each function gives a figure and draws nothing on a screen."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pipeline.figures import RULE_COLOURS, TRAIN, VALID, new_figure
from pipeline.many_lr_finder import Band


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


def rates_figure(settings: pd.DataFrame) -> Figure:
    """Mean validation accuracy of each setting over its rate, coloured by weight decay, with the spread over seeds.

    `settings` is the table of `head_sweep.compare_settings`; settings that diverged are crosses at the lower edge.
    """
    figure, axes = new_figure(8, 4.5)
    sound = settings[settings["valid_accuracy_mean"].notna()]
    spread = sound["valid_accuracy_std"].fillna(0.0)
    axes.errorbar(
        sound["lr"], sound["valid_accuracy_mean"], spread, fmt="none", ecolor="#cccccc", elinewidth=1, zorder=1
    )
    decays = sound["weight_decay"].clip(lower=1e-6)
    dots = axes.scatter(
        sound["lr"], sound["valid_accuracy_mean"], c=decays, cmap="viridis", s=36, zorder=2,
        norm=LogNorm(decays.min(), max(decays.max(), 1.0001 * decays.min())),
    )  # fmt: skip
    figure.colorbar(dots, ax=axes, label="weight decay")
    own, best = sound[sound["is_own"]], sound.iloc[:1]
    for marked, colour, label in ((own, "black", "the recipe's own"), (best, VALID, "best")):
        axes.scatter(
            marked["lr"], marked["valid_accuracy_mean"], s=140, facecolor="none", edgecolor=colour, linewidth=2,
            zorder=3, label=label,
        )  # fmt: skip
    diverged = settings[settings["valid_accuracy_mean"].isna()]
    if len(diverged):
        low = axes.get_ylim()[0]
        axes.scatter(diverged["lr"], [low] * len(diverged), marker="x", color=TRAIN, label="diverged", clip_on=False)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("valid accuracy, mean and spread over seeds")
    axes.legend(loc="lower center", fontsize=8)
    return figure


def noise_figure(heads: pd.DataFrame, settings: pd.DataFrame, by_noise: float) -> Figure:
    """Every head as a dot, its setting's mean as a line, the best setting on the left; where noise alone may bring the
    best, above the recipe's own, as a band.

    The tables are those of `head_sweep`; `by_noise` is that of its `Lead`.
    """
    figure, axes = new_figure(8, 4.5)
    sound = settings[settings["valid_accuracy_mean"].notna()].reset_index(drop=True)
    places = {number: place for place, number in enumerate(sound["setting"], start=1)}
    known = heads[heads["setting"].isin(list(places))]
    axes.scatter(known["setting"].map(places), known["valid_accuracy"], s=10, color=TRAIN, label="a head, of one seed")
    axes.plot(sound.index + 1, sound["valid_accuracy_mean"], color="black", linewidth=1.5, label="mean of its setting")
    own = sound[sound["is_own"]]
    if len(own):
        mean = own["valid_accuracy_mean"].item()
        axes.scatter(own.index + 1, [mean], s=110, color=VALID, edgecolor="white", zorder=3, label="the recipe's own")
        if np.isfinite(by_noise):
            axes.axhspan(mean, mean + by_noise, color=VALID, alpha=0.12, linewidth=0, label="a lead that may be noise")
    axes.set_xlabel("setting, from the best to the worst")
    axes.set_ylabel("valid accuracy")
    axes.set_title("What the setting does, beside what the seed does")
    axes.legend(loc="lower left", fontsize=8)
    return figure
