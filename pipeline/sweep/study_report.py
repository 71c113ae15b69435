"""The report on a study: what was found, whether it is more than chance, figures and trials, as one HTML page with all
of it inside, and as Markdown."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from pipeline.report import Advice, Figures, Numbers, Part, Section, Words, html_report, markdown_report
from pipeline.sweep.study_figures import sweep_figures
from pipeline.sweep.trials import (
    best_trial,
    complete_trials,
    counts,
    is_maximised,
    pareto_front,
    recipes_trial,
    settings_of,
    spell,
    trial_table,
    trials_of,
    values_of,
    verdict,
)

MOST_TRIALS = 20
ERRORS_FOR_MORE_THAN_CHANCE = 2
DPI = 110
FIGURES = {
    "history": ("How it went", "Each trial at what it came to. Pruned trials are hollow, at their last epoch; an arrow "
                "at the edge is a trial far beyond it."),
    "curves": ("How each trial learned", "The objective by epoch; pruned trials end in a hollow dot."),
    "pareto": ("What the objectives cost one another", "No trial beats those on the line in both objectives."),
    "importances": ("Which keys matter", "How much the values of the best 30 % of the trials differ from those of all, "
                    "by key (PED-ANOVA, Watanabe et al. 2023). The line shows how far that hangs on the trials there "
                    "happen to be: where lines overlap much, take the order for a hint alone."),
    "slice": ("Each key alone", "Where the dots rise to one side, or where the best lies at an end of its range, a "
              "wider range may hold a better value."),
    "contour": ("The keys in pairs", "The smooth surface is the mean of a Gaussian process that takes what other keys "
                "do for noise; trust it near dots alone."),
    "parallel_coordinates": ("All keys at once", "Each line is a complete trial, the better the darker."),
}  # fmt: skip


def write_sweep_report(
    study: optuna.Study,
    objectives: Sequence[str],
    recipe_settings: Mapping[str, object],
    seeds: pd.DataFrame,
    command: str,
    sentences: Sequence[str],
    valid_pictures: int | None,
    folder: Path,
) -> None:
    """Write `sweep.html`, `sweep.md`, `trials.csv` and `figures/*.png` into `folder`, at any number of trials.

    `recipe_settings` is the recipe by dotted key; `seeds` has a row for each seed that the best recipe was trained
    with, `seed` and its metrics, or none yet; `command` runs the best recipe; `sentences` are said first, such as the
    test result; `valid_pictures` is how many pictures an accuracy is of, where it is known.
    """
    trial_table(study, objectives).to_csv(folder / "trials.csv", index=False)
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    drawn = sweep_figures(study, objectives)
    for name, figure in drawn.items():
        figure.savefig(figures / f"{name}.png", dpi=DPI)
    sections = [
        Section("", _first_parts(study, objectives, sentences, valid_pictures)),
        *_best_section(study, objectives, recipe_settings, command),
        *_seeds_section(study, objectives, seeds),
        *(
            Section(FIGURES[name][0], [Words(FIGURES[name][1]), Figures([figures / f"{name}.png"], FIGURES[name][0])])
            for name in drawn
        ),
        *_trials_section(study, objectives),
    ]
    title = f"Sweep {study.study_name}: {' and '.join(objectives)}"
    (folder / "sweep.html").write_text(html_report(title, sections), encoding="utf-8")
    (folder / "sweep.md").write_text(markdown_report(title, sections, folder), encoding="utf-8")


def counts_in_words(study: optuna.Study) -> str:
    """Such as "16 trials are complete, 8 pruned, 1 failed."."""
    found = {state: number for state, number in counts(study).items() if number}
    if not found:
        return "No trial is done yet."
    named = {"retried": "broken off and run again"}
    said = [f"{number} {named.get(state, state)}" for state, number in found.items()]
    return f"Trials: {', '.join(said)}." + ("" if complete_trials(study) else " None is complete yet.")


def doubt(study: optuna.Study, objectives: Sequence[str], valid_pictures: int | None) -> str:
    """Why the best trial may be no better than the recipe's own; empty where nothing speaks for that.

    The noise is the binomial standard error of the accuracy. Two of it are asked for, since the best of many trials is
    also the luckiest.
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
        f"{len(complete_trials(study))} complete trials: so small a gain may well be chance. Believe the seeds "
        "rather than this trial, or take more validation pictures."
    )


def _first_parts(
    study: optuna.Study, objectives: Sequence[str], sentences: Sequence[str], valid_pictures: int | None
) -> list[Part]:
    best, own = best_trial(study), recipes_trial(study)
    parts: list[Part] = [Words(counts_in_words(study))]
    if best is not None:
        numbers = [(spell(name, value), f"{name}, trial {best.number}") for name, value in _named(best, objectives)]
        if own is not None and own.number != best.number:
            numbers += [(spell(name, value), f"{name}, the recipe") for name, value in _named(own, objectives)]
        parts += [Numbers(numbers), Words(_found(study, objectives, best, own))]
    parts += [Words(sentence) for sentence in sentences if sentence]
    words = doubt(study, objectives, valid_pictures)
    return [*parts, Advice("The gain may be chance", words)] if words else parts


def _found(study: optuna.Study, objectives: Sequence[str], best: FrozenTrial, own: FrozenTrial | None) -> str:
    which = "best" if len(objectives) == 1 else f"proposed, being the best in {objectives[0]}"
    if own is None:
        return f"Trial {best.number} is {which}; the recipe's own trial is not complete, so there is none to beat."
    if own.number == best.number:
        return f"Trial {best.number}, the recipe's own, is {which}: no trial beat the recipe."
    gains = [
        _compared(name, mine, its, is_maximised(study, place))
        for place, (name, mine, its) in enumerate(zip(objectives, values_of(best), values_of(own), strict=True))
    ]
    return f"Trial {best.number} is {which}. Against the recipe's own trial, {own.number}: {', '.join(gains)}."


def _compared(name: str, mine: float, its: float, is_more_better: bool) -> str:
    if mine == its:
        return f"{name} is the same"
    more, is_better = ("higher", is_more_better) if mine > its else ("lower", not is_more_better)
    return f"{name} is {spell(name, abs(mine - its))} {more}, which is {'better' if is_better else 'worse'}"


def _best_section(
    study: optuna.Study, objectives: Sequence[str], recipe_settings: Mapping[str, object], command: str
) -> list[Section]:
    best = best_trial(study)
    if best is None:
        return []
    differing = settings_that_differ(best, recipes_trial(study), recipe_settings)
    same = [key for key in best.params if key not in set(differing["key"])]
    parts: list[Part] = [differing] if len(differing) else [Words("It has the recipe's own values.")]
    parts += [Words(f"As in the recipe: {', '.join(same)}.")] if same and len(differing) else []
    parts += [Advice("Run it", "This trains and judges the best recipe.", command, is_good=True)] if command else []
    if len(objectives) == 1:
        return [Section("The best recipe", parts)]
    front = [{"trial": trial.number, **_row(trial, objectives)} for trial in
             pareto_front(study)]  # fmt: skip
    return [
        Section("The proposed recipe", parts),
        Section("The Pareto front", [Words("The proposed one first."), pd.DataFrame(front)]),
    ]


def settings_that_differ(
    best: FrozenTrial, own: FrozenTrial | None, recipe_settings: Mapping[str, object]
) -> pd.DataFrame:
    """A row for each `key` in which the trial differs from the recipe, with the value in the `recipe` and in the
    `best` trial; what the recipe leaves open has in brackets the value that its own trial had."""
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
        f"{name} {spell(name, seeds[name].mean())}" + (f" ± {seeds[name].std():.4f}" if len(seeds) > 1 else "")
        for name in metrics
    ]
    words = f"Over {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, mean ± standard deviation: {', '.join(means)}."
    own = recipes_trial(study)
    if own is not None and objectives[0] in metrics:
        words += f" The recipe's own trial has {objectives[0]} {spell(objectives[0], values_of(own)[0])}, of one seed."
    return [Section("The best recipe over several seeds", [Words(words), table])]


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
        parts += [Words(_origins(trials), heading), pd.DataFrame(rows).fillna("")]
    if rest:
        said = [(trial.number, verdict(study, trial, objectives)) for trial in rest[-MOST_TRIALS:]]
        parts += [
            Words("", f"The last {len(said)} of {len(rest)} that are not complete"),
            pd.DataFrame(said, columns=["trial", "what became of it"]),
        ]
    return [Section("Trials", [*parts, Words("All of them, with their runs, are in trials.csv.")])]


def _origins(trials: Sequence[FrozenTrial]) -> str:
    """Which trials the sampler did not choose."""
    origins = {trial.number: trial.user_attrs.get("origin") for trial in trials}
    named = ", ".join(f"trial {number} is {origin}" for number, origin in origins.items() if origin)
    return f"T{named[1:]}; the sampler chose all others." if named else ""


def _named(trial: FrozenTrial, objectives: Sequence[str]) -> list[tuple[str, float]]:
    return list(zip(objectives, values_of(trial), strict=True))


def _row(trial: FrozenTrial, objectives: Sequence[str]) -> dict[str, object]:
    values = {name: round(value) if spell(name, value).endswith(" s") else value for name, value in
              _named(trial, objectives)}  # fmt: skip
    return values | {key: _short(value) for key, value in settings_of(trial).items()}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _same(one: object, other: object) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other
