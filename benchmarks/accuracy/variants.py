"""Recipes that differ in one thing, on the same pictures: how well their networks do on what is held out, by seed."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sklearn.metrics import f1_score, precision_score, recall_score

from benchmarks.accuracy.sets import RARE, recipe_for
from benchmarks.accuracy.trainings import Ready, fine_tune, suggest_for_all, suggest_for_head, train_head
from pipeline.recipe.recipe_file import override_recipe

LABELS: Mapping[str, Mapping[str, str]] = {
    "the likelier class": {"data.soft_labels": "false"},
    "soft labels": {"data.soft_labels": "true"},
    "uncertain pictures count half": {"data.soft_labels": "false", "data.uncertain_weight": "0.5"},
}
BALANCES = ("none", "weights", "sampler")


def by_balance(table: str) -> dict[str, Ready]:
    """`training.balance` on the cells of a table of `write_rare_table`."""
    ready = Ready.of(recipe_for(table, "elpv", {"data.soft_labels": "false"}))
    return {one: replace(ready, recipe=override_recipe(ready.recipe, {"training.balance": one})) for one in BALANCES}


def by_labels() -> dict[str, Ready]:
    """The labels of the solar cells, by their recipe for a GPU."""
    return {name: Ready.of(recipe_for("elpv", "elpv_gpu", given)) for name, given in LABELS.items()}


def compare_variants(variants: Mapping[str, Ready], seeds: range) -> Iterator[dict[str, Any]]:
    """For each seed and variant the accuracy, macro F1, and the recall and precision of the class RARE, on the
    validation and on the test pictures, after the head has been trained and then all layers."""
    for seed in seeds:
        for name, ready in variants.items():
            network = ready.start(seed)
            train_head(ready, network, seed, suggest_for_head(ready, network, seed) or 1e-3)
            given = ready.recipe.fine_tune.lr
            rate = (suggest_for_all(ready, network, seed) or 1e-4) if isinstance(given, str) else given
            fine_tune(ready, network, seed, rate)
            rare = ready.manifest.classes.index(RARE)
            row: dict[str, Any] = {"variant": name, "seed": seed}
            for split in ("valid", "test"):
                predicted, true = ready.predictions(network, split)
                row |= {
                    f"{split}_accuracy": float((predicted == true).mean()),
                    f"{split}_macro_f1": float(f1_score(true, predicted, average="macro")),
                    f"{split}_recall": float(recall_score(true == rare, predicted == rare)),
                    f"{split}_precision": float(precision_score(true == rare, predicted == rare, zero_division=0)),
                }
            yield row
