"""The measurements of accuracy are not run here: the sets that they make, and how a grid of rates is walked."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.accuracy import finder_grid, sets
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


def test_each_rate_trains_the_network_as_it_was_and_may_diverge(monkeypatch):
    def train(ready, network, seed, lr):
        if lr > 0.1:
            raise UserError("The loss is nan")
        network.weight.data += 1
        return SimpleNamespace(valid_accuracy=float(network.weight.detach().sum()), valid_loss=lr)

    monkeypatch.setitem(finder_grid.RATES, train, [0.01, 0.2])
    network = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(network.weight)
    rows = list(finder_grid._trained(train, None, network, 3, 0.05))
    assert [(row["lr"], row["is_suggested"], row["valid_accuracy"]) for row in rows] == [
        (0.01, False, 1.0), (0.2, False, None), (0.05, True, 1.0)
    ]  # fmt: skip
    assert len(list(finder_grid._trained(train, None, network, 3, None))) == 2


@pytest.mark.parametrize(("source", "flip"), [("elpv", "all"), ("photos", "sideways")])
def test_a_set_has_the_recipe_that_is_taken_by_itself_and_one_split(source, flip):
    recipe = sets.recipe_for(source, given={"training.balance": "sampler"})
    assert (recipe.augment.flip, recipe.data.source, recipe.data.split_seed) == (flip, source, 0)
    assert recipe.training.balance == "sampler"
