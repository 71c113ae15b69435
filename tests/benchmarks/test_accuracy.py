"""The measurements of accuracy are not run here: the sets that they make, and how a grid of rates is walked."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.accuracy import draw, finder_grid, options, sets
from pipeline.recipe.recipe_file import override_recipe
from pipeline.system.errors import UserError


def test_shapes_are_drawn_into_class_folders_and_always_alike(tmp_path):
    first, second = (sets.draw_shapes(tmp_path / name, each=2) for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    assert {str(path.parent) for path in files} == set(sets.SHAPES)
    assert len({(first / path).read_bytes() for path in files}) == 2 * len(sets.SHAPES)
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)


def test_a_rare_class_is_twenty_times_rarer_in_training_alone(tmp_path, monkeypatch):
    rows = [("functional", "train")] * 40 + [("defective", "train")] * 18 + [("defective", "test")] * 9
    table = pd.DataFrame(rows, columns=["label", "split"])
    paths = [tmp_path / f"{number}.png" for number in range(len(rows))]
    for path in paths:
        Image.new("L", (2, 2)).save(path)
    monkeypatch.setattr(sets, "list_source", lambda *_: None)
    monkeypatch.setattr(sets, "build_manifest", lambda *_: SimpleNamespace(table=table, paths=paths))
    made = sets.write_rare_table(tmp_path / "made")
    found = pd.read_csv(made)
    assert found.groupby(["label", "split"]).size().to_dict() == {
        ("defective", "test"): 9, ("defective", "train"): 2, ("functional", "train"): 40
    }  # fmt: skip
    assert all((made.parent / path).is_file() for path in found["path"])


def ready_for(optimizer: str) -> SimpleNamespace:
    return SimpleNamespace(recipe=SimpleNamespace(training=SimpleNamespace(optimizer=optimizer)))


def test_each_rate_trains_the_network_as_it_was_and_may_diverge(monkeypatch):
    def train(ready, network, seed, lr):
        if lr > 0.1:
            raise UserError("The loss is nan")
        network.weight.data += 1
        return SimpleNamespace(valid_accuracy=float(network.weight.detach().sum()), valid_loss=lr)

    monkeypatch.setitem(finder_grid.RATES, train, [0.01, 0.2])
    network = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(network.weight)
    ready = ready_for("adamw")
    rows = list(finder_grid._trained(train, ready, network, 3, 0.05))
    assert [(row["lr"], row["is_suggested"], row["valid_accuracy"]) for row in rows] == [
        (0.01, False, 1.0), (0.2, False, None), (0.05, True, 1.0)
    ]  # fmt: skip
    assert len(list(finder_grid._trained(train, ready, network, 3, None))) == 2
    sgd = list(finder_grid._trained(train, ready_for("sgd"), network, 3, 0.05))
    assert [(row["lr"], row["is_suggested"]) for row in sgd] == [(1, False), (20, False), (0.05, True)]


@pytest.mark.parametrize(("source", "flip"), [("elpv", "all"), ("photos", "sideways")])
def test_a_set_has_the_recipe_that_is_taken_by_itself_and_one_split(source, flip):
    recipe = sets.recipe_for(source, given={"training.balance": "sampler"})
    assert (recipe.augment.flip, recipe.data.source, recipe.data.split_seed) == (flip, source, 0)
    assert recipe.training.balance == "sampler"


def grid_of(accuracy_of, suggested, name="cells"):
    rows = [
        {"set": name, "what": what, "seed": seed, "lr": lr, "is_suggested": lr == suggested,
         "valid_accuracy": accuracy_of(lr, seed), "valid_loss": 1.0}
        for what in (finder_grid.HEAD, finder_grid.ALL) for seed in range(3) for lr in (1e-5, 1e-3, 1e-2, suggested)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("suggested", "accuracy", "holds"),
    [(2e-3, 0.85, True), (2e-3, 0.79, True), (2e-3, 0.7, False), (9e-6, 0.85, False), (2e-3, None, False)],
)
def test_a_suggestion_holds_within_one_standard_deviation_and_not_a_hundred_times_too_low(suggested, accuracy, holds):
    of_grid = {1e-5: 0.5, 1e-3: 0.85, 1e-2: None}

    def accuracy_of(lr, seed):
        found = of_grid.get(lr, accuracy)
        return None if found is None else found + 0.1 * (seed - 1)

    rows = grid_of(accuracy_of, suggested)
    found = draw.summarize_grid(rows)
    assert found["best_lr"].tolist() == [1e-3, 1e-3]
    assert found["best_std"].tolist() == pytest.approx([0.1, 0.1])
    assert found["holds"].tolist() == [holds, holds]
    assert draw.grid_table(rows).count("falls short") == (0 if holds else 2)
    assert len(draw.grid_figure(rows).axes) == 2


@pytest.mark.parametrize("source", ["elpv", "photos"])
def test_every_option_is_one_that_the_recipe_of_the_set_takes_and_differs_from_it(source):
    recipe = options.tried_recipe(source)
    for name, keys in options.options_for(recipe).items():
        assert (override_recipe(recipe, keys) == recipe) == (name == options.AS_IT_IS)


def test_cycles_have_as_many_epochs_together_as_the_recipe_has_in_one():
    recipe = options.tried_recipe("elpv")
    tried = override_recipe(recipe, options.options_for(recipe)["fine_tune.cycles=4 fine_tune.cycle_len=2"]).fine_tune
    assert tried.cycles * tried.cycle_len == recipe.fine_tune.cycle_len


def test_what_an_option_brings_is_its_difference_seed_by_seed():
    def row(name, option, seed, accuracy):
        return {"set": name, "option": option, "seed": seed, "valid_accuracy": accuracy}

    plain = [row("cells", options.AS_IT_IS, 0, 0.5), row("cells", options.AS_IT_IS, 1, 0.7)]
    tried = [row("cells", "erase", 0, 0.6), row("cells", "erase", 1, 0.9), row("cells", "cutmix", 1, 0.6)]
    assert draw.options_table(pd.DataFrame(plain + tried)).splitlines() == [
        "| option | cells | difference |", "| --- | --- | --- |",
        f"| {options.AS_IT_IS} | 0.6000 ± 0.1414 |  |", "| erase | 0.7500 ± 0.2121 | +0.1500 ± 0.0707 |",
        "| cutmix | 0.6000 (1) | -0.1000 |",
    ]  # fmt: skip


def test_means_are_over_the_seeds():
    rows = pd.DataFrame({"variant": ["a", "b", "a"], "seed": [0, 0, 1], "test_recall": [0.5, 1.0, 0.7]})
    assert draw.means_table(rows, ["variant"], ["test_recall"]).splitlines()[2:] == [
        "| a | 2 | 0.6000 ± 0.1414 |", "| b | 1 | 1.0000 ± nan |"
    ]  # fmt: skip
