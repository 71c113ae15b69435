"""The best recipe of a study: trained over several seeds, evaluated once, and logged in the study's run."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import optuna
import pandas as pd

from pipeline import tracking
from pipeline.cache.hashing import content_key
from pipeline.ranks.launch import call
from pipeline.recipe.presets import command_line
from pipeline.recipe.schema import Recipe, training_settings, write_recipe
from pipeline.runs.best_stage import best_stage
from pipeline.runs.ensemble.seeds import with_seed
from pipeline.runs.stage import ignore_epoch
from pipeline.runs.summary import CURVES, results_of
from pipeline.sweep.sweep_report import NOT_EVALUATED, BestRecipe, write_sweep_report
from pipeline.sweep.trial_run import Train, recipe_of
from pipeline.sweep.trials import best_trial
from pipeline.system.console import say
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef
from pipeline.training.records import kept_name

BEST_RECIPE = "best_recipe.yaml"
EVALUATED = "evaluated"
NAMES = ("valid/accuracy", "valid/macro_f1", "valid/loss")
Evaluate = Callable[[Recipe, str], RunRef]  # the network of a run, by its id


def best_recipe(recipe: Recipe, study: optuna.Study) -> Recipe | None:
    """The recipe with the values of the best trial; None if none is complete."""
    best = best_trial(study)
    return recipe_of(recipe, best) if best is not None else None


def log_report(
    run_id: str, study: optuna.Study, recipe: Recipe, valid_pictures: int, found: BestRecipe = NOT_EVALUATED
) -> None:
    """Log the report and the best recipe so far in the study's run; `found` is known once that is evaluated."""
    best = best_recipe(recipe, study)
    with tracking.new_files(run_id) as folder:
        if best is not None:
            found = replace(found, command=command_line(best, {}))
            (folder / BEST_RECIPE).write_text(write_recipe(best), encoding="utf-8")
        settings, objectives = training_settings(recipe), recipe.sweep.objectives
        write_sweep_report(study, objectives, settings, found, valid_pictures, folder)


def evaluate_best(
    recipe: Recipe,
    study: optuna.Study,
    run_id: str,
    data: str,
    train: Train,
    evaluate: Evaluate,
    write: Callable[[BestRecipe], None],
) -> None:
    """Train the best recipe with `sweep.seeds` seeds, and `evaluate` the network of the recipe's own seed, once, on the
    test split; unless that was done for the same recipe. Then `write` the report. UserError if no trial is complete."""
    best = best_recipe(recipe, study)
    if best is None:
        raise UserError(f"No trial was trained to the end; trials.csv of run {run_id} says why.")
    key = content_key(training_settings(best) | {"sweep.seeds": recipe.sweep.seeds})
    evaluated = study.user_attrs.get(EVALUATED, {})
    if evaluated.get("key") != key or recipe.reuse == "never":
        sweep = recipe.sweep
        networks, found = call(sweep.gpus_per_trial, _train_seeds, best, sweep.seeds, train, evaluate, run_id)
        seeds = _seeds_table({seed: ref.metrics for seed, ref in networks.items()})
        sentences = _log_evaluated(run_id, data, seeds, found)
        evaluated = {"key": key, "seeds": seeds.to_dict("records"), "sentences": sentences}
        study.set_user_attr(EVALUATED, evaluated)
    write(BestRecipe(pd.DataFrame(evaluated["seeds"]), evaluated["sentences"]))
    for sentence in evaluated["sentences"]:
        say(sentence)
    say(f"See sweep.html of run {run_id} with 'make ui'; -P recipe= takes its {BEST_RECIPE}.")


def _train_seeds(
    best: Recipe, seeds: int, train: Train, evaluate: Evaluate, run_id: str
) -> tuple[dict[int, RunRef], RunRef]:
    """(The run with the network of each seed, that of the evaluation of the recipe's own), in runs within the
    study's."""
    with tracking.nested_in(run_id):
        networks = {seed: _train_seed(best, seed, train) for seed in range(best.seed, best.seed + seeds)}
        return networks, evaluate(best, networks[best.seed].run_id)


def _train_seed(best: Recipe, seed: int, train: Train) -> RunRef:
    """Train with another seed on the same split; the run of the stage whose network is to be evaluated."""
    seeded = with_seed(best, seed)
    settings = training_settings(seeded)
    with tracking.open_run(f"best recipe, seed {seed}", {tracking.STAGE: "seed"}, settings) as run_id:
        done = {}
        for stage, ref in train(seeded, ignore_epoch):
            done[stage] = ref
            tracking.copy_curves(ref.run_id, run_id, CURVES)
        return done[best_stage(done)[0]]


def _log_evaluated(run_id: str, data: str, seeds: pd.DataFrame, evaluated: RunRef) -> list[str]:
    """Log the results in the study's run; gives them in sentences."""
    split = "test" if "test/accuracy" in evaluated.metrics else "valid"
    accuracy = evaluated.metrics[f"{split}/accuracy"]
    sentences = [
        f"The best recipe's valid accuracy is {_format_accuracy(seeds)}.",
        f"Its model of the recipe's own seed has {split} accuracy {accuracy:.4f}, evaluated once.",
    ]
    tracking.log_metrics(run_id, _seeds_metrics(seeds) | results_of(evaluated), step=0)
    tracking.show_result(evaluated.run_id, run_id, ["report.html"])
    tracking.add_to_description(run_id, " ".join(sentences))
    tracking.rename_run(run_id, f"{data}, sweep, {split} accuracy {accuracy:.3f}")
    return sentences


def _seeds_table(metrics: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    """A row for each seed with the results of its network."""
    rows = [{"seed": seed, **{name: found[kept_name(name)] for name in NAMES}} for seed, found in metrics.items()]
    return pd.DataFrame(rows, columns=["seed", *NAMES])


def _seeds_metrics(seeds: pd.DataFrame) -> dict[str, float]:
    """Mean and standard deviation over the seeds; the latter only if there are several."""
    found: dict[str, float] = {}
    for name in NAMES:
        metric = f"seeds/{name.replace('/', '_')}"
        found[f"{metric}_mean"] = float(seeds[name].mean())
        if len(seeds) > 1:
            found[f"{metric}_std"] = float(seeds[name].std())
    return found


def _format_accuracy(seeds: pd.DataFrame) -> str:
    """Such as "0.8534 ± 0.0071 over 3 seeds"."""
    accuracies = seeds["valid/accuracy"]
    if len(seeds) == 1:
        return f"{accuracies[0]:.4f} with one seed"
    return f"{accuracies.mean():.4f} ± {accuracies.std():.4f} over {len(seeds)} seeds"
