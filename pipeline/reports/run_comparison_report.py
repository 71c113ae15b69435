"""The report on several runs: tables, figures and one HTML page with all of them inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.run_comparison import (
    EvaluatedRun,
    align,
    confusion_differences,
    describe_tests,
    differing_settings,
    mcnemar_table,
    metrics_table,
)
from pipeline.reports.figures import label_classes, plot_labels
from pipeline.reports.page import Figures, Paragraph, Section, html_report, markdown_table
from pipeline.system.tables import write_table

MOST_WITH_NUMBERS, LONGEST_RUN_NAME = 30, 80


def write_run_comparison(runs: Sequence[EvaluatedRun], folder: Path) -> str:
    """Write `comparison.html`, its tables as CSV and its figures as PNG into `folder`; gives a summary in Markdown.

    UserError unless the runs were evaluated on the same pictures.
    """
    tests = mcnemar_table(runs, align(runs))
    settings, metrics = differing_settings(runs), metrics_table(runs)
    for name, table in (("settings", settings), ("metrics", metrics), ("mcnemar", tests)):
        write_table(table, folder / f"{name}.csv")
    figures = folder / "figures"
    figures.mkdir()
    drawn = [("Curves", figures / "curves.png")]
    measured = [metric for metric in ("train/loss", "valid/loss", "valid/accuracy") if _any_has(runs, metric)]
    run_curves_figure({run.name: run.curves for run in runs}, measured).savefig(drawn[0][1], dpi=110)
    for number, (name, difference) in enumerate(confusion_differences(runs).items(), start=1):
        path = figures / f"confusion_difference_{number}.png"
        confusion_difference_figure(difference).savefig(path, dpi=110)
        drawn.append((f"Confusion: {name} less {runs[0].name}", path))
    words, count = describe_tests(runs, tests), len(runs[0].evaluated)
    title = f"{len(runs)} runs on the same {count} {runs[0].split} pictures"
    tables = {
        "McNemar's test for each pair": tests.rename(
            columns={"only_run": "only run is right", "only_other": "only other is right"}
        ),
        "Metrics": metrics,
        "Settings that differ": settings,
    }
    sections = [
        Section("", [Paragraph(words)]),
        *(Section(heading, [table]) for heading, table in tables.items()),
        *(Section(heading, [Figures([path], heading)]) for heading, path in drawn),
    ]
    (folder / "comparison.html").write_text(html_report(title, sections), encoding="utf-8")
    return f"{title}. {words}\n\n{markdown_table(metrics)}\n\n{markdown_table(settings)}\n"


def _any_has(runs: Sequence[EvaluatedRun], metric: str) -> bool:
    return any(metric in run.curves for run in runs)


def run_curves_figure(curves: Mapping[str, Mapping[str, pd.DataFrame]], metrics: Sequence[str]) -> Figure:
    """A panel for each of `metrics`, in which every run (by name) has one line of `value` over `step`."""
    figure = Figure(figsize=(9, 2.8 * len(metrics) + 0.6), layout="constrained")
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    labels = plot_labels(list(curves), LONGEST_RUN_NAME)
    for axes, metric in zip(panels, metrics, strict=True):
        for index, (name, of_run) in enumerate(zip(labels, curves.values(), strict=True)):
            if metric in of_run:
                points, colour = of_run[metric], colours[index % len(colours)]
                width = 3.5 if index == 0 else 1.5  # so that both are seen where one curve covers another
                axes.plot(points["step"], points["value"], color=colour, label=name, linewidth=width, marker="o")
        axes.set_ylabel(metric)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e5e5e5")
    panels[-1].set_xlabel("step, over all stages")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = {line.get_label(): line for axes in panels for line in axes.lines}
    named = [handles[name] for name in labels if name in handles]
    for text in figure.legend(handles=named, loc="outside upper center", ncols=min(len(named), 3) or 1).get_texts():
        text.set_parse_math(False)
    return figure


def confusion_difference_figure(difference: pd.DataFrame) -> Figure:
    """True against predicted: more pictures than the first run has in red, fewer in blue; the diagonal is
    what is right, where more is better."""
    classes = [str(label) for label in difference.index]
    side = min(3 + 0.6 * len(classes), 16)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    numbers = difference.to_numpy()
    most = max(int(np.abs(numbers).max()), 1)
    axes.imshow(numbers, cmap="RdBu_r", vmin=-most, vmax=most)
    for row, column in np.ndindex(*numbers.shape) if len(classes) <= MOST_WITH_NUMBERS else ():
        colour = "white" if abs(numbers[row, column]) > 0.6 * most else "black"
        axes.text(column, row, f"{numbers[row, column]:+d}".replace("+0", "0"), ha="center", va="center", color=colour)
    label_classes(axes, classes)
    return figure
