"""How many pictures of a class that is twenty times rarer in training are found, by `training.balance`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sklearn.metrics import f1_score, precision_score, recall_score

from benchmarks.accuracy.sets import RARE
from benchmarks.accuracy.trainings import Ready, fine_tune, suggest_for_head, train_head
from pipeline.recipe.recipe_file import override_recipe

BALANCES = ("none", "weights", "sampler")


def compare_balances(ready: Ready, seeds: range) -> Iterator[dict[str, Any]]:
    """For each seed and balance the recall and precision of the rare class on the test pictures, and more."""
    rare = ready.manifest.classes.index(RARE)
    for seed in seeds:
        for balance in BALANCES:
            own = replace(ready, recipe=override_recipe(ready.recipe, {"training.balance": balance}))
            network = own.start(seed)
            train_head(own, network, seed, suggest_for_head(own, network, seed) or 1e-3)
            rate = own.recipe.fine_tune.lr
            assert not isinstance(rate, str)
            fine_tune(own, network, seed, rate)
            row: dict[str, Any] = {"balance": balance, "seed": seed}
            for split in ("valid", "test"):
                predicted, true = own.predictions(network, split)
                row |= {
                    f"{split}_recall": float(recall_score(true == rare, predicted == rare)),
                    f"{split}_precision": float(precision_score(true == rare, predicted == rare, zero_division=0)),
                    f"{split}_accuracy": float((predicted == true).mean()),
                    f"{split}_macro_f1": float(f1_score(true, predicted, average="macro")),
                }
            yield row
