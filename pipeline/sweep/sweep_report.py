"""The report of a study: the best trial, whether it is more than chance, interactive figures and the trials, as one
HTML page that reads offline, and as Markdown without the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from pipeline.reports.page import Advice, Html, KeyFigures, Paragraph, Part, Section, html_report, markdown_report
from pipeline.sweep.study_figures import study_figures
from pipeline.sweep.trials import (
    best_trial,
    complete_trials,
    counts,
    format_objective,
    is_maximised,
    pareto_front,
    recipes_trial,
    settings_of,
    trial_table,
    trials_of,
    values_of,
    verdict,
)
from pipeline.system.tables import write_table

MOST_TRIALS = 20
ERRORS_FOR_MORE_THAN_CHANCE = 2
FIGURES = {
    "history": ("Optimization history", "The value of each complete trial, and the best one so far."),
    "curves": ("Learning curves", "The objective by epoch; pruned trials end early."),
    "pareto": ("One objective against the other", "No trial beats the red ones in both."),
    "importances": ("Which keys matter", "How much the values of the best 30 % of the trials differ from those of all, "
                    "by key (PED-ANOVA, Watanabe et al. 2023). With few trials the order is but a hint."),
    "slice": ("Each key alone", "If the dots rise to one side, or the best lies at an end of its range, a wider range "
              "may hold a better value."),
    "contour": ("The keys in pairs", "Dots are trials; the colours between them are interpolated, so trust them only "
                "near dots."),
    "parallel_coordinates": ("All keys at once", "Each line is a complete trial, the better the darker."),
}  # fmt: skip


@dataclass(frozen=True)
class BestRecipe:
    """What is known of the best recipe: a row for each of the `seeds` that it was trained with, `seed` and its metrics;
    `sentences`, such as the test result; and the `command` that runs it. Empty until it is evaluated."""

    seeds: pd.DataFrame = field(default_factory=pd.DataFrame)
    sentences: Sequence[str] = ()
    command: str = ""


NOT_EVALUATED = BestRecipe()


def write_sweep_report(
    study: optuna.Study,
    objectives: Sequence[str],
    recipe_settings: Mapping[str, object],
    found: BestRecipe,
    valid_pictures: int | None,
    folder: Path,
) -> None:
    """Write `sweep.html`, `sweep.md` and `trials.csv` into `folder`, for any number of trials.

    `recipe_settings` is the recipe by dotted key; `valid_pictures` is how many pictures an accuracy is measured on, if
    it is known.
    """
    write_table(trial_table(study, objectives), folder / "trials.csv")
    first = [
        Section("", _first_parts(study, objectives, found.sentences, valid_pictures)),
        *_best_section(study, objectives, recipe_settings, found.command),
        *_seeds_section(study, objectives, found.seeds),
    ]
    last = _trials_section(study, objectives)
    title = f"Sweep {study.study_name}: {' and '.join(objectives)}"
    page = html_report(title, [*first, *_figure_sections(study, objectives), *last])
    (folder / "sweep.html").write_text(page, encoding="utf-8")
    (folder / "sweep.md").write_text(markdown_report(title, [*first, *last], folder), encoding="utf-8")


def _figure_sections(study: optuna.Study, objectives: Sequence[str]) -> list[Section]:
    """A section for each kind of figure; the first figure brings plotly.js, which all others use."""
    sections, needs_script = [], True
    for name, figures in study_figures(study, objectives).items():
        heading, words = FIGURES[name]
        parts: list[Part] = [Paragraph(words)]
        for index, figure in enumerate(figures):
            div_id, config = f"{name}-{index}", {"displaylogo": False, "responsive": True}
            content = figure.to_html(config, full_html=False, include_plotlyjs=needs_script, div_id=div_id)
            parts.append(Html(content))
            needs_script = False
        sections.append(Section(heading, parts))
    return sections


def counts_in_words(study: optuna.Study) -> str:
    """Such as "16 trials are complete, 8 pruned, 1 failed."."""
    found = {state: number for state, number in counts(study).items() if number}
    if not found:
        return "No trial is done yet."
    named = {"retried": "interrupted and run again"}
    named_counts = [f"{number} {named.get(state, state)}" for state, number in found.items()]
    return f"Trials: {', '.join(named_counts)}." + ("" if complete_trials(study) else " None is complete yet.")


def doubt(study: optuna.Study, objectives: Sequence[str], valid_pictures: int | None) -> str:
    """Why the best trial may be no better than the recipe's own; empty if nothing suggests that.

    The noise is the binomial standard error of the accuracy. The gain must exceed two of it, since the best of many
    trials is also the luckiest.
    """
    best, own = best_trial(study), recipes_trial(study)
    if best is None or own is None or objectives[0] != "valid/accuracy" or not valid_pictures:
        return ""
    if best.number == own.number:
        return ""
    accuracy, gain = values_of(best)[0], values_of(best)[0] - values_of(own)[0]
    error = math.sqrt(accuracy * (1 - accuracy) / valid_pictures)
    if gain > ERRORS_FOR_MORE_THAN_CHANCE * error:
        return ""
    return (
        f"It is {gain:.4f} better than the recipe's own, which is within twice the standard error of an accuracy on "
        f"{valid_pictures} validation pictures ({error:.4f}), and it is the luckiest of "
        f"{len(complete_trials(study))} complete trials: so small a gain may well be chance. Trust the seeds "
        "rather than this trial, or use more validation pictures."
    )


def _first_parts(
    study: optuna.Study, objectives: Sequence[str], sentences: Sequence[str], valid_pictures: int | None
) -> list[Part]:
    best, own = best_trial(study), recipes_trial(study)
    parts: list[Part] = [Paragraph(counts_in_words(study))]
    if best is not None:
        numbers = [
            (format_objective(name, value), f"{name}, trial {best.number}") for name, value in _named(best, objectives)
        ]
        if own is not None and own.number != best.number:
            numbers += [
                (format_objective(name, value), f"{name}, the recipe") for name, value in _named(own, objectives)
            ]
        parts += [KeyFigures(numbers), Paragraph(_found(study, objectives, best, own))]
    parts += [Paragraph(sentence) for sentence in sentences if sentence]
    words = doubt(study, objectives, valid_pictures)
    return [*parts, Advice("The gain may be chance", words)] if words else parts


def _found(study: optuna.Study, objectives: Sequence[str], best: FrozenTrial, own: FrozenTrial | None) -> str:
    which = "best" if len(objectives) == 1 else f"proposed, being the best in {objectives[0]}"
    if own is None:
        return f"Trial {best.number} is {which}; the recipe's own trial is not complete, so there is none to beat."
    if own.number == best.number:
        return f"Trial {best.number}, the recipe's own, is {which}: no trial beat the recipe."
    gains = [
        _compared(name, mine, its, is_maximised(study, index))
        for index, (name, mine, its) in enumerate(zip(objectives, values_of(best), values_of(own), strict=True))
    ]
    return f"Trial {best.number} is {which}. Against the recipe's own trial, {own.number}: {', '.join(gains)}."


def _compared(name: str, mine: float, its: float, is_more_better: bool) -> str:
    if mine == its:
        return f"{name} is the same"
    more, is_better = ("higher", is_more_better) if mine > its else ("lower", not is_more_better)
    return f"{name} is {format_objective(name, abs(mine - its))} {more}, which is {'better' if is_better else 'worse'}"


def _best_section(
    study: optuna.Study, objectives: Sequence[str], recipe_settings: Mapping[str, object], command: str
) -> list[Section]:
    best = best_trial(study)
    if best is None:
        return []
    differing = settings_that_differ(best, recipes_trial(study), recipe_settings)
    same = [key for key in best.params if key not in set(differing["key"])]
    parts: list[Part] = [differing] if len(differing) else [Paragraph("It has the recipe's own values.")]
    parts += [Paragraph(f"As in the recipe: {', '.join(same)}.")] if same and len(differing) else []
    parts += [Advice("Run it", "This trains and evaluates the best recipe.", command, is_good=True)] if command else []
    if len(objectives) == 1:
        return [Section("The best recipe", parts)]
    front = [{"trial": trial.number, **_row(trial, objectives)} for trial in
             pareto_front(study)]  # fmt: skip
    return [
        Section("The proposed recipe", parts),
        Section("The Pareto front", [Paragraph("The proposed one first."), pd.DataFrame(front)]),
    ]


def settings_that_differ(
    best: FrozenTrial, own: FrozenTrial | None, recipe_settings: Mapping[str, object]
) -> pd.DataFrame:
    """A row for each `key` in which the trial differs from the recipe, with the value in the `recipe` and in the
    `best` trial; for "auto" the value of the recipe's own trial is added in brackets."""
    rows = []
    for key, value in best.params.items():
        written, taken = recipe_settings.get(key), own.params.get(key) if own is not None else None
        if taken is None:
            recipe, is_same = _short(written) if written is not None else "", _same(value, written)
        else:
            recipe, is_same = _short(taken), _same(value, taken)
            recipe = recipe if written is None or _same(written, taken) else f"{_short(written)} ({recipe})"
        if not is_same:
            rows.append((key, recipe, _short(value)))
    return pd.DataFrame(rows, columns=["key", "recipe", "best"])


def _seeds_section(study: optuna.Study, objectives: Sequence[str], seeds: pd.DataFrame) -> list[Section]:
    if seeds.empty:
        return []
    metrics = [name for name in seeds.columns if name != "seed"]
    table = seeds.assign(seed=seeds["seed"].astype(str))
    means = [
        f"{name} {format_objective(name, seeds[name].mean())}"
        + (f" ± {seeds[name].std():.4f}" if len(seeds) > 1 else "")
        for name in metrics
    ]
    words = f"Over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, mean ± standard deviation: {', '.join(means)}."
    own = recipes_trial(study)
    if own is not None and objectives[0] in metrics:
        value = format_objective(objectives[0], values_of(own)[0])
        words += f" The recipe's own trial has {objectives[0]} {value}, of one seed."
    return [Section("The best recipe over several seeds", [Paragraph(words), table])]


def _trials_section(study: optuna.Study, objectives: Sequence[str]) -> list[Section]:
    trials = trials_of(study)
    if not trials:
        return []
    sign = -1 if is_maximised(study) else 1
    best_first = sorted(complete_trials(study), key=lambda trial: (sign * values_of(trial)[0], trial.number))
    rest = [trial for trial in trials if trial.state != TrialState.COMPLETE]
    parts: list[Part] = []
    if best_first:
        rows = [{"trial": trial.number, **_row(trial, objectives)} for trial in best_first[:MOST_TRIALS]]
        heading = f"The best {len(rows)} of {len(best_first)} complete trials"
        parts += [Paragraph(_origins(trials), heading), pd.DataFrame(rows).fillna("")]
    if rest:
        rows_of_rest = [(trial.number, verdict(study, trial, objectives)) for trial in rest[-MOST_TRIALS:]]
        parts += [
            Paragraph("", f"The last {len(rows_of_rest)} of {len(rest)} that are not complete"),
            pd.DataFrame(rows_of_rest, columns=["trial", "how it ended"]),
        ]
    return [Section("Trials", [*parts, Paragraph("All of them, with their runs, are in trials.csv.")])]


def _origins(trials: Sequence[FrozenTrial]) -> str:
    """Which trials the sampler did not choose."""
    origins = {trial.number: trial.user_attrs.get("origin") for trial in trials}
    named = ", ".join(f"trial {number} is {origin}" for number, origin in origins.items() if origin)
    return f"T{named[1:]}; the sampler chose all others." if named else ""


def _named(trial: FrozenTrial, objectives: Sequence[str]) -> list[tuple[str, float]]:
    return list(zip(objectives, values_of(trial), strict=True))


def _row(trial: FrozenTrial, objectives: Sequence[str]) -> dict[str, object]:
    values = {name: round(value) if format_objective(name, value).endswith(" s") else value for name, value in
              _named(trial, objectives)}  # fmt: skip
    return values | {key: _short(value) for key, value in settings_of(trial).items()}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _same(one: object, other: object) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other
