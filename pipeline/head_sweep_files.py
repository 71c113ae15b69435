"""What a comparison of heads leaves behind: tables, figures, metrics, and the rows that are printed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.figures_heads import band_figure, noise_figure, rates_figure
from pipeline.head_sweep import lead_of_best
from pipeline.lr_finder import Curve
from pipeline.many_lr_finder import HIGH, LOW, band_of, band_table, suggested_by_seed
from pipeline.suggest import suggestions

BEST_SHOWN = 5
BEST_COLUMNS = ["place", "valid accuracy", "lr", "weight decay", "dropout", "smoothing", "epochs"]


def write_band(folder: Path, curves: Sequence[Curve], chosen: str) -> dict[str, float]:
    """The band of the curves as `lr_band.csv` and `figures/lr_band.png` below `folder`; what the rule `chosen` suggests
    for the median (`suggestion/lr`, missing where that is nothing), and where four in five of the seeds' own lie."""
    band = band_of(curves)
    found = suggestions(band.rates, band.middle)
    by_seed = suggested_by_seed(curves, chosen)
    (folder / "figures").mkdir(exist_ok=True)
    band_table(band).to_csv(folder / "lr_band.csv", index=False)
    band_figure(band, found, chosen, by_seed, len(curves)).savefig(folder / "figures" / "lr_band.png", dpi=120)
    points: dict[str, float] = {}
    rate = found[chosen]
    if rate is not None:
        points["suggestion/lr"] = rate
    if by_seed:
        low, high = np.quantile(by_seed, [LOW, HIGH])
        points |= {"suggestion/lr_low": float(low), "suggestion/lr_high": float(high)}
    return points


def write_comparison(folder: Path, heads: pd.DataFrame, compared: pd.DataFrame, seeds: int) -> None:
    """The tables of `head_sweep` as `heads.csv` and `settings.csv`, and their figures, below `folder`."""
    (folder / "figures").mkdir(exist_ok=True)
    heads.to_csv(folder / "heads.csv", index=False)
    compared.to_csv(folder / "settings.csv", index=False)
    by_noise = lead_of_best(compared, seeds).by_noise
    rates_figure(compared).savefig(folder / "figures" / "rates.png", dpi=120)
    noise_figure(heads, compared, by_noise).savefig(folder / "figures" / "seed_noise.png", dpi=120)


def comparison_metrics(heads: pd.DataFrame, compared: pd.DataFrame, seconds: float) -> dict[str, float]:
    """Means and spreads of the best setting (`best/…`) and of the recipe's own (`own/…`), how many heads were trained
    in `seconds`, and how many of them diverged; without what is no number."""
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
        "throughput/heads_per_second": len(heads) / seconds,
    }
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def best_rows(compared: pd.DataFrame) -> list[list[str]]:
    """The cells of `BEST_COLUMNS` for the best five settings, and for the recipe's own where it is not among them."""
    own = int(compared["is_own"].to_numpy().argmax())
    return [_row(compared, place) for place in sorted({*range(min(BEST_SHOWN, len(compared))), own})]


def _row(compared: pd.DataFrame, place: int) -> list[str]:
    one = compared.iloc[place]
    spread = f" ± {one['valid_accuracy_std']:.4f}" if math.isfinite(one["valid_accuracy_std"]) else ""
    return [
        f"{place + 1}" + (" (the recipe's own)" if one["is_own"] else ""),
        f"{one['valid_accuracy_mean']:.4f}{spread}",
        f"{one['lr']:.2e}",
        *(f"{one[name]:.2g}" for name in ("weight_decay", "dropout", "label_smoothing")),
        f"{one['stored_epochs']}",
    ]
