"""Whether the finder's suggestion, used as it is, trains as well as the best of a grid of nine rates."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np

from benchmarks.accuracy.trainings import Ready, fine_tune, suggest_for_all, suggest_for_head, train_head
from pipeline.models.network import Network
from pipeline.system.errors import UserError
from pipeline.training.records import EpochRecord

HEAD, ALL = "head", "all layers"
Train: TypeAlias = Callable[[Ready, Network, int, float], EpochRecord]
Row: TypeAlias = dict[str, Any]
RATES: dict[Train, Any] = {train_head: np.geomspace(1e-5, 1e-1, 9), fine_tune: np.geomspace(1e-6, 1e-2, 9)}
SGD_TIMES = 100  # sgd wants rates that are so many times higher


def compare_rates(name: str, ready: Ready, seeds: range) -> Iterator[list[Row]]:
    """For each seed a row for each trained rate: of the head on stored activations, and, after the head has been
    trained at its suggested rate, of all layers. The rate that the finder suggests has `is_suggested`."""
    for seed in seeds:
        network = ready.start(seed)
        rate = suggest_for_head(ready, network, seed)
        rows = [dict(set=name, what=HEAD, **row) for row in _trained(train_head, ready, network, seed, rate)]
        train_head(ready, network, seed, rate or 1e-3)
        rate = suggest_for_all(ready, network, seed)
        yield rows + [dict(set=name, what=ALL, **row) for row in _trained(fine_tune, ready, network, seed, rate)]


def _trained(train: Train, ready: Ready, network: Network, seed: int, suggested: float | None) -> Iterator[Row]:
    """A row for each rate; the network stays as it is."""
    times = SGD_TIMES if ready.recipe.training.optimizer == "sgd" else 1
    rates = [(float(rate) * times, False) for rate in RATES[train]] + ([] if suggested is None else [(suggested, True)])
    for rate, is_suggested in rates:
        found: EpochRecord | None = None
        with suppress(UserError):  # the loss is no number any more
            found = train(ready, copy.deepcopy(network), seed, rate)
        accuracy, loss = (None, None) if found is None else (found.valid_accuracy, found.valid_loss)
        yield {"seed": seed, "lr": rate, "is_suggested": is_suggested, "valid_accuracy": accuracy, "valid_loss": loss}
