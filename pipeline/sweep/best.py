"""The best recipe of a study: trained over several seeds, judged once, and logged in the study's run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pandas as pd

from pipeline.console import say
from pipeline.contract import RunRef, go_on
from pipeline.errors import UserError
from pipeline.recipe import Recipe, command_line, training_settings
from pipeline.recipe_file import write_recipe
from pipeline.store import content_key
from pipeline.summary import CURVES
from pipeline.sweep.study_report import write_sweep_report
from pipeline.sweep.trial_run import Train, recipe_of
from pipeline.sweep.trials import best_trial

BEST_RECIPE = "best_recipe.yaml"
JUDGED = "judged"
NAMES = ("valid/accuracy", "valid/macro_f1", "valid/loss")
Draw = Callable[[pd.DataFrame, Sequence[str]], None]


def best_recipe(recipe: Recipe, study: optuna.Study) -> Recipe | None:
    """The recipe with the values of the best trial; None where none came to its end."""
    best = best_trial(study)
    return recipe_of(recipe, best) if best is not None else None


def log_report(
    run_id: str,
    study: optuna.Study,
    recipe: Recipe,
    valid_pictures: int,
    seeds: pd.DataFrame,
    sentences: Sequence[str],
) -> None:
    """Log the report in the study's run, its figures and its table, and the best recipe so far."""
    from pipeline import tracking

    best = best_recipe(recipe, study)
    command = command_line(best, {}) if best is not None else ""
    settings = training_settings(recipe)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_sweep_report(study, recipe.sweep.objectives, settings, seeds, command, sentences, valid_pictures, folder)
        if best is not None:
            (folder / BEST_RECIPE).write_text(write_recipe(best), encoding="utf-8")
        tracking.log_folder(run_id, folder)


def judge_best(
    recipe: Recipe,
    study: optuna.Study,
    run_id: str,
    data: str,
    train: Train,
    evaluate: Callable[[Recipe, str], RunRef],
    draw: Draw,
) -> None:
    """Train the best recipe over `sweep.seeds` seeds, and `evaluate` the model of the recipe's own, which looks at the
    test split once and registers it; unless that was done for the same recipe. UserError where there is none."""
    best = best_recipe(recipe, study)
    if best is None:
        raise UserError(f"None of the trials came to its end; trials.csv of run {run_id} says why.")
    key = content_key(training_settings(best) | {"seeds": recipe.sweep.seeds})
    judged = study.user_attrs.get(JUDGED, {})
    if judged.get("key") != key or recipe.reuse == "never":
        last = {seed: _train_seed(best, seed, train) for seed in range(best.seed, best.seed + recipe.sweep.seeds)}
        seeds = _seeds_table({seed: ref.metrics for seed, ref in last.items()})
        sentences = _log_judged(run_id, data, seeds, evaluate(best, last[best.seed].run_id))
        judged = {"key": key, "seeds": seeds.to_dict("records"), "sentences": sentences}
        study.set_user_attr(JUDGED, judged)
    draw(pd.DataFrame(judged["seeds"]), judged["sentences"])
    for sentence in judged["sentences"]:
        say(sentence)
    say(f"See sweep.html of run {run_id} with 'make ui'; its {BEST_RECIPE} is what -P recipe= takes.")


def _train_seed(best: Recipe, seed: int, train: Train) -> RunRef:
    """Train with another seed on the same split; the run of the last stage."""
    from pipeline import tracking

    split_seed = best.seed if best.data.split_seed == "auto" else best.data.split_seed
    data = best.data.model_copy(update={"split_seed": split_seed})
    seeded = best.model_copy(update={"seed": seed, "data": data})
    settings = training_settings(seeded)
    with tracking.open_run(f"best recipe, seed {seed}", {tracking.STAGE: "seed"}, settings) as run_id:
        last = None
        for _, last in train(seeded, go_on):
            tracking.copy_curves(last.run_id, run_id, CURVES)
        assert last is not None
        return last


def _log_judged(run_id: str, data: str, seeds: pd.DataFrame, judged: RunRef) -> list[str]:
    """Log what came out in the study's run; gives it in sentences."""
    from pipeline import tracking

    split = "test" if "test/accuracy" in judged.metrics else "valid"
    accuracy = judged.metrics[f"{split}/accuracy"]
    sentences = [
        f"The best recipe's valid accuracy is {_in_words(seeds)}.",
        f"Its model of the recipe's own seed has {split} accuracy {accuracy:.4f}, looked at once.",
    ]
    tracking.log_metrics(run_id, _seeds_metrics(seeds), step=0)
    tracking.copy_curves(judged.run_id, run_id, CURVES)
    tracking.show_result(judged.run_id, run_id, ["report.html"])
    tracking.add_to_description(run_id, " ".join(sentences))
    tracking.rename_run(run_id, f"{data}, sweep, {split} accuracy {accuracy:.3f}")
    return sentences


def _seeds_table(metrics: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    """A row for each seed with the figures that its training ended with, from the metrics of its last stage."""
    rows = [{"seed": seed, **{name: found[name] for name in NAMES}} for seed, found in metrics.items()]
    return pd.DataFrame(rows, columns=["seed", *NAMES])


def _seeds_metrics(seeds: pd.DataFrame) -> dict[str, float]:
    """Mean and standard deviation over the seeds; the latter is left out where there is one alone."""
    found: dict[str, float] = {}
    for name in NAMES:
        metric = f"seeds/{name.replace('/', '_')}"
        found[f"{metric}_mean"] = float(seeds[name].mean())
        if len(seeds) > 1:
            found[f"{metric}_std"] = float(seeds[name].std())
    return found


def _in_words(seeds: pd.DataFrame) -> str:
    """Such as "0.8534 ± 0.0071 over 3 seeds"."""
    accuracies = seeds["valid/accuracy"]
    if len(seeds) == 1:
        return f"{accuracies[0]:.4f} with one seed"
    return f"{accuracies.mean():.4f} ± {accuracies.std():.4f} over {len(seeds)} seeds"
