"""The report of a comparison of heads: tables, figures, metrics, and the rows that are printed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from pipeline.reports.figures import TRAIN, VALID, new_figure
from pipeline.reports.lr_finder_figures import band_figure
from pipeline.system.tables import write_table
from pipeline.training.heads.head_settings import lead_of_best
from pipeline.training.heads.lr_band import HIGH, LOW, band_of, band_table, suggested_by_seed
from pipeline.training.lr_finder import Curve, suggestions

BEST_SHOWN = 5
BEST_COLUMNS = ["rank", "valid accuracy", "lr", "weight decay", "dropout", "smoothing", "epochs"]


def write_band(folder: Path, curves: Sequence[Curve], chosen: str) -> dict[str, float]:
    """The band of the curves as `lr_band.csv` and `figures/lr_band.png` below `folder`; what the rule `chosen` suggests
    for the median (`suggestion/lr`, missing where that is nothing), and where four in five of the seeds' own lie."""
    band = band_of(curves)
    found = suggestions(band.rates, band.middle)
    by_seed = suggested_by_seed(curves, chosen)
    (folder / "figures").mkdir(exist_ok=True)
    write_table(band_table(band), folder / "lr_band.csv")
    band_figure(band, found, chosen, by_seed, len(curves)).savefig(folder / "figures" / "lr_band.png", dpi=120)
    points: dict[str, float] = {}
    rate = found[chosen]
    if rate is not None:
        points["suggestion/lr"] = rate
    if by_seed:
        low, high = np.quantile(by_seed, [LOW, HIGH])
        points |= {"suggestion/lr_low": float(low), "suggestion/lr_high": float(high)}
    return points


def write_heads_comparison(folder: Path, heads: pd.DataFrame, compared: pd.DataFrame, seeds: int) -> None:
    """The tables of `head_sweep` as `heads.csv` and `settings.csv`, and their figures, below `folder`."""
    (folder / "figures").mkdir(exist_ok=True)
    write_table(heads, folder / "heads.csv")
    write_table(compared, folder / "settings.csv")
    by_noise = lead_of_best(compared, seeds).by_noise
    rates_figure(compared).savefig(folder / "figures" / "rates.png", dpi=120)
    noise_figure(heads, compared, by_noise).savefig(folder / "figures" / "seed_noise.png", dpi=120)


def comparison_metrics(heads: pd.DataFrame, compared: pd.DataFrame, seconds: float) -> dict[str, float]:
    """Means and spreads of the best setting (`best/…`) and of the recipe's own (`own/…`), how many heads were trained
    in `seconds`, and how many of them diverged; without what is not finite."""
    metrics = {
        f"{of}/{name}{end}": float(row[f"{name}_{kind}"])
        for of, row in (("best", compared.iloc[0]), ("own", compared[compared["is_own"]].iloc[0]))
        for name in ("valid_accuracy", "valid_loss", "valid_macro_f1")
        for kind, end in (("mean", ""), ("std", "_std"))
    }
    metrics |= {
        "heads/trained": float(len(heads)),
        "heads/diverged": float(heads["diverged"].sum()),
        "train/seconds": seconds,
        "heads_per_second": len(heads) / seconds,
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def best_rows(compared: pd.DataFrame) -> list[list[str]]:
    """The cells of `BEST_COLUMNS` for the best five settings, and for the recipe's own where it is not among them."""
    own = int(compared["is_own"].to_numpy().argmax())
    return [_setting_row(compared, rank) for rank in sorted({*range(min(BEST_SHOWN, len(compared))), own})]


def _setting_row(compared: pd.DataFrame, rank: int) -> list[str]:
    one = compared.iloc[rank]
    spread = f" ± {one['valid_accuracy_std']:.4f}" if math.isfinite(one["valid_accuracy_std"]) else ""
    return [
        f"{rank + 1}" + (" (the recipe's own)" if one["is_own"] else ""),
        f"{one['valid_accuracy_mean']:.4f}{spread}",
        f"{one['lr']:.2e}",
        *(f"{one[name]:.2g}" for name in ("weight_decay", "dropout", "label_smoothing")),
        f"{one['stored_epochs']}",
    ]


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
    ranks = {number: rank for rank, number in enumerate(sound["setting"], start=1)}
    known = heads[heads["setting"].isin(list(ranks))]
    axes.scatter(known["setting"].map(ranks), known["valid_accuracy"], s=10, color=TRAIN, label="a head, of one seed")
    axes.plot(sound.index + 1, sound["valid_accuracy_mean"], color="black", linewidth=1.5, label="mean of its setting")
    own = sound[sound["is_own"]]
    if len(own):
        mean = own["valid_accuracy_mean"].item()
        axes.scatter(own.index + 1, [mean], s=110, color=VALID, edgecolor="white", zorder=3, label="the recipe's own")
        if np.isfinite(by_noise):
            axes.axhspan(mean, mean + by_noise, color=VALID, alpha=0.12, linewidth=0, label="a lead that may be noise")
    axes.set_xlabel("setting, from the best to the worst")
    axes.set_ylabel("valid accuracy")
    axes.set_title("Differences between settings, beside those between seeds")
    axes.legend(loc="lower left", fontsize=8)
    return figure
