"""Tables of what was measured, and the figure of the finder's suggestions.

python -m benchmarks.accuracy.draw benchmarks/results/finder.json … [--figure docs/lr_find_grid.png]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.accuracy.finder_grid import ALL, HEAD
from benchmarks.accuracy.options import AS_IT_IS


def summarize_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """For each `what` and `set` of `compare_rates`: the grid's best rate, its mean accuracy and standard deviation over
    the seeds, the same of the suggestions, their lowest and highest, and whether they `hold`: that their mean is at
    most one standard deviation below the best's, and none lies below a hundredth of its rate. A training that diverged
    counts as an accuracy of 0."""
    found = []
    for (what, name), part in rows.fillna({"valid_accuracy": 0.0}).groupby(["what", "set"], sort=False):
        by_rate = part[~part["is_suggested"]].groupby("lr")["valid_accuracy"].agg(["mean", "std"])
        best = by_rate["mean"].idxmax()
        suggested = part[part["is_suggested"]]
        mean, std = suggested["valid_accuracy"].mean(), suggested["valid_accuracy"].std()
        top, spread = by_rate.loc[best, "mean"], by_rate.loc[best, "std"]
        low, high = suggested["lr"].min(), suggested["lr"].max()
        holds = bool(mean >= top - spread and low >= best / 100)
        found.append([what, name, part["seed"].nunique(), best, top, spread, low, high, mean, std, holds])
    columns = ["what", "set", "seeds", "best_lr", "best_mean", "best_std", "low_lr", "high_lr", "mean", "std", "holds"]
    return pd.DataFrame(found, columns=columns)


def grid_table(rows: pd.DataFrame) -> str:
    """That as Markdown."""
    lines = [
        "| what is trained | pictures | best of nine | valid accuracy there | suggested | valid accuracy there | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one.what} | {one.set} | {one.best_lr:.1e} | {one.best_mean:.4f} ± {one.best_std:.4f} | "
        f"{one.low_lr:.1e} to {one.high_lr:.1e} | {one.mean:.4f} ± {one.std:.4f} | "
        f"{'' if one.holds else 'falls short'} |"
        for one in summarize_grid(rows).itertuples()
    ]
    return "\n".join(lines)


def grid_figure(rows: pd.DataFrame) -> Figure:
    """A panel for each set, above for the head and below for all layers: mean accuracy over the seeds at each rate of
    the grid with one standard deviation, and each seed's suggestion with its accuracy."""
    sets = list(dict.fromkeys(rows["set"]))
    figure = Figure(figsize=(4 * len(sets), 6), layout="constrained")
    panels = figure.subplots(2, len(sets), squeeze=False)
    for line, what in zip(panels, (HEAD, ALL), strict=True):
        for axes, name in zip(line, sets, strict=True):
            part = rows[(rows["set"] == name) & (rows["what"] == what)]
            grid, suggested = part[~part["is_suggested"]], part[part["is_suggested"]]
            found = grid.groupby("lr")["valid_accuracy"].agg(["mean", "std"])
            axes.fill_between(
                found.index, found["mean"] - found["std"], found["mean"] + found["std"], color="#4c78a8", alpha=0.25
            )
            axes.plot(found.index, found["mean"], marker=".", color="#4c78a8", label="nine rates, mean over seeds")
            axes.scatter(
                suggested["lr"],
                suggested["valid_accuracy"],
                s=30,
                color="#e45756",
                zorder=3,
                label="suggested, each seed",
            )
            axes.set_xscale("log")
            axes.set_title(f"{name}: {what}", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("valid accuracy")
    for axes in panels[1]:
        axes.set_xlabel("learning rate of the head")
    panels[0][0].legend(fontsize=8, frameon=False)
    return figure


def options_table(rows: pd.DataFrame) -> str:
    """A line for each option of `compare_options`, with the mean accuracy and standard deviation over the seeds of each
    set, whose number is told where it is smaller than that of others, and by how much it is above that of the recipe as
    it is, seed by seed."""
    sets = list(dict.fromkeys(rows["set"]))
    plain = rows[rows["option"] == AS_IT_IS].set_index(["set", "seed"])["valid_accuracy"]
    keys = pd.MultiIndex.from_frame(rows[["set", "seed"]])
    rows = rows.assign(more=rows["valid_accuracy"].to_numpy() - plain.reindex(keys).to_numpy())
    lines = [
        f"| option | {' | '.join(f'{name} | difference' for name in sets)} |",
        f"|{' --- |' * (1 + 2 * len(sets))}",
    ]
    for option, part in rows.groupby("option", sort=False):
        cells = []
        for name in sets:
            of_set = part[part["set"] == name]
            fewer = f" ({len(of_set)})" if 0 < len(of_set) < rows.loc[rows["set"] == name, "seed"].nunique() else ""
            cells.append(_mean(of_set["valid_accuracy"], "") + fewer)
            cells.append("" if option == AS_IT_IS else _mean(of_set["more"], "+"))
        lines.append(f"| {option} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: pd.Series, sign: str) -> str:
    """The mean, with the standard deviation of several; nothing of none."""
    spread = f" ± {values.std():.4f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.4f}{spread}" if len(values) else ""


def means_table(rows: pd.DataFrame, by: Sequence[str], results: Sequence[str]) -> str:
    """A line for each combination of the columns `by`, with the mean and standard deviation of each of `results`."""
    lines = [f"| {' | '.join([*by, 'seeds', *results])} |", f"|{' --- |' * (len(by) + 1 + len(results))}"]
    for key, part in rows.groupby(list(by), sort=False):
        cells = [f"{part[name].mean():.4f} ± {part[name].std():.4f}" for name in results]
        lines.append(f"| {' | '.join([*map(str, key), str(part['seed'].nunique()), *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables, and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--figure", type=Path, help="of the rates")
    given = parser.parse_args()
    tables = [pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["rows"]) for path in given.files]
    grids = [rows for rows in tables if "is_suggested" in rows]
    if grids:
        rows = pd.concat(grids, ignore_index=True)
        print(grid_table(rows), end="\n\n")
        if given.figure:
            grid_figure(rows).savefig(given.figure, dpi=110)
    options = [rows for rows in tables if "option" in rows]
    if options:
        print(options_table(pd.concat(options, ignore_index=True)), end="\n\n")
    for rows in tables:
        if "variant" in rows:
            results = [
                f"{split}_{name}"
                for name in ("recall", "precision", "accuracy", "macro_f1")
                for split in ("valid", "test")
            ]
            print(means_table(rows, ["variant"], results), end="\n\n")
        elif "fastai" in rows:
            results = ["thaw", "thaw_stored_epochs", "fastai", "difference"]
            rows = rows.assign(difference=rows["thaw"] - rows["fastai"])
            print(means_table(rows, ["set", "image_px", "split"], results), end="\n\n")


if __name__ == "__main__":
    main()
