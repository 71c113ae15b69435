"""The report on several runs: tables, figures and one HTML page with all of them inside."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.comparison import (
    JudgedRun,
    align,
    confusion_differences,
    differing_settings,
    in_words,
    mcnemar_table,
    metrics_table,
)
from pipeline.comparison_figures import confusion_difference_figure, curves_figure
from pipeline.report import Figures, Section, Words, html_report, markdown_table


def write_comparison(runs: Sequence[JudgedRun], folder: Path) -> str:
    """Write `comparison.html`, its tables as CSV and its figures as PNG into `folder`; gives a summary in Markdown.

    UserError unless the runs were judged on the same pictures.
    """
    tests = mcnemar_table(runs, align(runs))
    settings, metrics = differing_settings(runs), metrics_table(runs)
    for name, table in (("settings", settings), ("metrics", metrics), ("mcnemar", tests)):
        table.to_csv(folder / f"{name}.csv", index=False)
    figures = folder / "figures"
    figures.mkdir()
    drawn = [("Curves", figures / "curves.png")]
    measured = [metric for metric in ("train/loss", "valid/loss", "valid/accuracy") if _any_has(runs, metric)]
    curves_figure({run.name: run.curves for run in runs}, measured).savefig(drawn[0][1], dpi=110)
    for place, (name, difference) in enumerate(confusion_differences(runs).items(), start=1):
        path = figures / f"confusion_difference_{place}.png"
        confusion_difference_figure(difference).savefig(path, dpi=110)
        drawn.append((f"Confusion: {name} less {runs[0].name}", path))
    words, count = in_words(runs, tests), len(runs[0].judged)
    title = f"{len(runs)} runs on the same {count} {runs[0].split} pictures"
    tables = {
        "McNemar's test for each pair": tests.rename(
            columns={"only_run": "only run is right", "only_other": "only other is right"}
        ),
        "Figures": metrics,
        "Settings that differ": settings,
    }
    sections = [
        Section("", [Words(words)]),
        *(Section(heading, [table]) for heading, table in tables.items()),
        *(Section(heading, [Figures([path], heading)]) for heading, path in drawn),
    ]
    (folder / "comparison.html").write_text(html_report(title, sections), encoding="utf-8")
    return f"{title}. {words}\n\n{markdown_table(metrics)}\n\n{markdown_table(settings)}\n"


def _any_has(runs: Sequence[JudgedRun], metric: str) -> bool:
    return any(metric in run.curves for run in runs)
