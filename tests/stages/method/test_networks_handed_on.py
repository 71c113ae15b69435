"""Which network each stage starts from and leaves, and in which order main runs the stages."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.models.network import build_head
from pipeline.recipe.schema import Recipe
from pipeline.tracking import RunRef
from stages import main
from tests.stages.predicting import loss_and_accuracy

TRAINING = ("train_head", "fine_tune", "resize")


@pytest.mark.parametrize("name", ["lr_find", "train_head"])
def test_the_head_starts_anew_from_the_seed_with_the_shape_of_the_recipe(chain, name):
    torch.manual_seed(3)
    fresh = build_head(192, 3, 24, 0.3).state_dict()
    first = chain[name].did.first_state
    assert first.keys() == fresh.keys()
    assert all(torch.equal(fresh[key], tensor) for key, tensor in first.items())


def test_the_shape_of_the_head_is_told_by_its_checkpoint(chain):
    facts = json.loads((chain["train_head"].files / "checkpoint" / "checkpoint.json").read_text())
    assert (facts["hidden"], facts["dropout"]) == (24, 0.3)


@pytest.mark.parametrize("name", ["lr_find_unfrozen", "fine_tune", "resize"])
def test_a_stage_trains_the_network_of_the_stage_before_it(chain, name):
    first, saved = chain[name].did.first_state, chain[name].before.network()
    assert {key for key, tensor in saved.items() if not torch.equal(first[key], tensor)} == set()


@pytest.mark.parametrize("name", TRAINING)
def test_the_figures_of_what_is_kept_are_those_of_the_saved_network_on_the_validation_pictures(chain, name):
    metrics = chain[name].metrics
    told = metrics["kept_valid_loss"], metrics["kept_valid_accuracy"]
    assert told == pytest.approx(loss_and_accuracy(chain, name, "valid"), abs=1e-4)


@pytest.mark.parametrize("name", TRAINING)
def test_the_training_loss_of_an_epoch_is_the_mean_of_its_steps(chain, name):
    epochs, steps = (pd.read_csv(chain[name].files / f"{table}.csv") for table in ("epochs", "steps"))
    of_epochs = [part.mean() for part in np.split(steps["loss"].to_numpy(), len(epochs))]
    assert epochs["train_loss"].tolist() == pytest.approx(of_epochs)
    assert chain[name].metrics["train/loss"] == pytest.approx(of_epochs[-1])


@pytest.fixture
def stage_calls(monkeypatch) -> list[tuple[str, str | None]]:
    """Every stage that main runs, and the run that it is given; none of them does anything."""
    calls: list[tuple[str, str | None]] = []

    def stand_in(name: str) -> Any:
        def run(recipe: Recipe, upstream: str | None = None, *after_epoch: Any) -> RunRef:
            calls.append((name, upstream))
            return RunRef(f"{name} {len(calls)}", name, "", upstream)

        return run

    for name in ("precompute", "lr_find", "train_head", "fine_tune", "resize"):
        monkeypatch.setattr(getattr(main, name), "run", stand_in(name))
    return calls


def names(trained: Iterator[tuple[str, RunRef]]) -> list[str]:
    return [name for name, _ in trained]


def test_main_trains_on_the_finders_runs_where_a_rate_is_auto(stage_calls):
    assert names(main.train(Recipe())) == [
        "precompute", "lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize",
    ]  # fmt: skip
    assert stage_calls == [
        ("precompute", None), ("lr_find", "precompute 1"), ("train_head", "lr_find 2"), ("lr_find", "train_head 3"),
        ("fine_tune", "lr_find 4"), ("resize", "fine_tune 5"),
    ]  # fmt: skip


@pytest.mark.parametrize("find_given", [True, False])
def test_main_trains_past_the_finder_where_the_recipe_gives_the_rate(stage_calls, chain, find_given):
    names(main.train(chain.recipe, find_given=find_given))
    by_stage = {name: upstream for name, upstream in stage_calls if name != "lr_find"}
    assert [(upstream or "").split(" ")[0] for upstream in by_stage.values()] == [
        "", "precompute", "train_head", "fine_tune",
    ]  # fmt: skip
    assert [upstream.split(" ")[0] for name, upstream in stage_calls if name == "lr_find"] == (
        ["precompute", "train_head"] if find_given else []
    )
