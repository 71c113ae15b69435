"""Soft labels, from the table's columns to the training steps, and nowhere but there."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.runs.recipe_pictures import list_pictures
from pipeline.system.errors import UserError
from stages import precompute, sweep_head
from stages.__main__ import check_inputs
from tests.drawn_pictures import CLASSES, draw_pictures
from tests.stages.chains import Chain, recipe_on, run_chain

SURE, UNSURE = (1.0, 0.0, 0.0), (0.75, 0.25, 0.0)


def soft_table(folder: Path) -> Path:
    """Pictures whose class has the share 1, or, for every third, 0.75, and the next class the rest."""
    table = pd.read_csv(draw_pictures(folder / "pictures"))
    for number, label in enumerate(CLASSES):
        table[f"probability/{label}"] = [
            (UNSURE if row % 3 == 0 else SURE)[(number - CLASSES.index(own)) % 3]
            for row, own in enumerate(table.pop("label") if number == 2 else table["label"])
        ]
    path = folder / "pictures" / "soft.csv"
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def soft_chain(fresh_workplace) -> Chain:
    """By labels of which every third is unsure; pictures of which it is weigh half as much."""
    workplace = fresh_workplace()
    recipe = recipe_on(
        soft_table(workplace.folder), data__uncertain_weight=0.5, precompute__views=1, train_head__cycles=1,
        train_head__cycle_len=1, fine_tune__cycles=1, fine_tune__cycle_len=1, augment__mixup=0.0,
    )  # fmt: skip
    follows = {
        "precompute": "", "lr_find": "precompute", "train_head": "precompute", "lr_find_unfrozen": "train_head",
        "fine_tune": "train_head", "evaluate": "fine_tune",
    }  # fmt: skip
    return run_chain(workplace, recipe, follows)


TRAINED = ("lr_find", "train_head", "lr_find_unfrozen", "fine_tune")


@pytest.mark.parametrize("name", TRAINED)
def test_every_training_step_is_towards_the_shares(soft_chain, name):
    for step in soft_chain[name].did.steps:
        assert step.targets.shape == (step.shape[0], 3)
        assert {tuple(sorted(shares, reverse=True)) for shares in step.targets.tolist()} <= {SURE, UNSURE}
    assert any((step.targets == 0.75).any() for step in soft_chain[name].did.steps)


@pytest.mark.parametrize("name", TRAINED)
def test_uncertain_pictures_weigh_less_in_each_training_step(soft_chain, name):
    for step in soft_chain[name].did.steps:
        assert step.weights == [0.5 if max(shares) == 0.75 else 1.0 for shares in step.targets.tolist()]


def test_predictions_are_judged_by_the_likeliest_class(soft_chain):
    table = pd.read_csv(soft_chain["evaluate"].files / "predictions.csv")
    assert (table["label"] == [Path(path).parts[0] for path in table["path"]]).all()
    assert soft_chain["evaluate"].metrics["test/accuracy"] == pytest.approx(
        (table["label"] == table["predicted"])[table["split"] == "test"].mean()
    )


def test_many_heads_at_once_learn_soft_labels_too(tracking_server, tmp_path, capsys):
    recipe = recipe_on(soft_table(tmp_path), training={}, sweep_head__settings=2, sweep_head__seeds=1,
                       sweep_head__finder_seeds=2)  # fmt: skip
    sweep_head.run(recipe, precompute.run(recipe).run_id)
    assert "heads in" in capsys.readouterr().out


def test_soft_labels_are_asked_of_the_source_before_the_first_stage_and_by_it(tmp_path):
    recipe = recipe_on(draw_pictures(tmp_path / "pictures"), data__soft_labels=True)
    for take in (check_inputs, list_pictures):
        with pytest.raises(UserError, match=r"data\.soft_labels is true, but .* names one class for each picture"):
            take(recipe)
