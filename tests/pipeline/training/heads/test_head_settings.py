"""Settings of a head are compared by their means over seeds, and a lead with the noise."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Recipe, flatten
from pipeline.recipe.sweep_sections import HEAD_KEYS, Choice, IntRange, LogUniformRange, SweepHead, UniformRange
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.heads.head_settings import (
    compare_settings,
    describe_lead,
    draw_settings,
    lead_of_best,
    settings_to_compare,
    train_settings,
    value_at,
    with_setting,
)
from pipeline.training.heads.many_heads import HeadSetting, SharedSettings
from pipeline.training.keep import best_epoch
from tests.pipeline.stored_classes import shape, stored_batches, trained_alone

RANGES = {name: getattr(SweepHead(), name) for name in HEAD_KEYS}


def test_each_kind_of_range_is_walked_from_end_to_end():
    shares = [0.0, 0.25, 0.5, 0.75, 0.999]
    assert [value_at(IntRange(type="int", low=1, high=4), share) for share in shares] == [1, 2, 3, 4, 4]
    assert [value_at(Choice(type="choice", of=["a", "b"]), share) for share in shares] == ["a", "a", "b", "b", "b"]
    assert value_at(UniformRange(type="uniform", low=1, high=3), 0.25) == 1.5
    assert value_at(LogUniformRange(type="log_uniform", low=1e-4, high=1e-2), 0.5) == pytest.approx(1e-3)


def test_settings_lie_within_their_ranges_and_are_spread_evenly():
    settings = draw_settings(RANGES, 64, seed=0)
    assert len(set(settings)) == 64
    shares = np.log([one.lr / 3e-5 for one in settings]) / np.log(1000)
    assert np.histogram(shares, bins=8, range=(0, 1))[0].tolist() == [8] * 8
    assert [sum(one.dropout == value for one in settings) for value in (0.0, 0.25, 0.5, 0.75)] == [16] * 4
    assert {type(one.stored_epochs) for one in settings} == {int}


def test_a_seed_gives_the_same_settings_and_another_others():
    assert draw_settings(RANGES, 5, seed=1) == draw_settings(RANGES, 5, seed=1) != draw_settings(RANGES, 5, seed=2)
    assert draw_settings(RANGES, 5, seed=1) == draw_settings(RANGES, 8, seed=1)[:5]


def test_none_are_drawn_where_the_recipes_own_is_the_only_one():
    assert draw_settings(RANGES, 0, seed=0) == []
    assert len(draw_settings(RANGES, 1, seed=0)) == 1


def test_the_recipe_of_a_setting_differs_by_that_alone():
    setting = HeadSetting(lr=0.02, weight_decay=0.3, dropout=0.1, label_smoothing=0.2, stored_epochs=7)
    changed = flatten(with_setting(Recipe(), setting))
    differing = {key: value for key, value in changed.items() if value != flatten(Recipe())[key]}
    assert differing == {
        "train_head.lr": 0.02,
        "train_head.weight_decay": 0.3,
        "head.dropout": 0.1,
        "train_head.label_smoothing": 0.2,
        "train_head.stored_epochs": 7,
    }


def test_the_recipes_own_setting_is_the_first_that_is_compared():
    recipe = override_recipe(
        Recipe(),
        {
            "train_head.weight_decay": "0.3", "head.dropout": "0.1", "train_head.label_smoothing": "0.2",
            "train_head.stored_epochs": "7", "sweep_head.settings": "3", "seed": "5",
        },
    )  # fmt: skip
    own, *others = settings_to_compare(recipe, 0.02)
    assert own == HeadSetting(lr=0.02, weight_decay=0.3, dropout=0.1, label_smoothing=0.2, stored_epochs=7)
    assert others == draw_settings(RANGES, 2, seed=5)


def heads(*accuracies, losses=None):
    """A table of heads: a list of accuracies over seeds for each setting; NaN is a head that diverged."""
    rows = [
        {
            "setting": number, "seed": seed, "lr": 10.0**-number, "weight_decay": 0.1, "dropout": 0.5,
            "label_smoothing": 0.0, "stored_epochs": 5, "train_loss": 0.5,
            "valid_loss": losses[number] if losses else 0.5, "valid_accuracy": accuracy, "valid_macro_f1": accuracy,
            "diverged": math.isnan(accuracy),
        }
        for number, of_setting in enumerate(accuracies)
        for seed, accuracy in enumerate(of_setting)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_settings_are_trained_with_every_seed_as_by_themselves():
    settings = [HeadSetting(1e-2, 0.1, 0.5, 0.1, 2), HeadSetting(3e-3, 0.0, 0.0, 0.0, 1)]
    batches = stored_batches()
    recipe = override_recipe(Recipe(), {"train_head.warm_up": "0.5", "training.momentum": "cycled"})
    table = train_settings(settings, [4, 6], shape(0), *batches, recipe)
    assert table[["setting", "seed"]].to_numpy().tolist() == [[0, 4], [0, 6], [1, 4], [1, 6]]
    assert table["stored_epochs"].tolist() == [2, 2, 1, 1]
    shared = SharedSettings(0.5, TrainingOptions(momentum="cycled"))
    _, records = trained_alone(replace(settings[0], seed=6), 0, batches, shared)
    assert table["valid_loss"][1] == pytest.approx(records[-1].valid_loss, rel=1e-5)
    assert table["valid_accuracy"][1] == records[-1].valid_accuracy
    assert table["train_loss"][1] == pytest.approx(records[-1].train_loss, rel=1e-5)


def test_a_row_is_of_the_epoch_whose_weights_are_kept():
    setting = HeadSetting(0.05, stored_epochs=12)
    recipe = override_recipe(Recipe(), {"training.keep": "best_loss"})
    table = train_settings([setting], [4], shape(8), *stored_batches(), recipe)
    _, records = trained_alone(replace(setting, seed=4), 8, stored_batches(), SharedSettings.of(recipe))
    best = best_epoch(records, "best_loss")
    assert best.epoch < 12
    assert table["valid_loss"][0] == pytest.approx(best.valid_loss, rel=1e-4)
    assert table["train_loss"][0] == pytest.approx(best.train_loss, rel=1e-4)


def test_the_best_setting_has_the_best_mean_and_not_the_best_head():
    compared = compare_settings(heads([0.8, 0.8], [0.95, 0.5], [0.82, 0.84]), own=0)
    assert compared["setting"].tolist() == [2, 0, 1]
    assert compared["is_own"].tolist() == [False, True, False]
    assert compared["valid_accuracy_mean"].tolist() == pytest.approx([0.83, 0.8, 0.725])
    assert compared["valid_accuracy_std"][0] == pytest.approx(np.std([0.82, 0.84], ddof=1))


def test_ties_go_to_the_lower_loss():
    compared = compare_settings(heads([0.1, 0.2, 0.3], [0.3, 0.2, 0.1], losses=[0.6, 0.4]), own=0)
    assert compared["setting"].tolist() == [1, 0]


def test_a_setting_of_which_a_head_diverged_comes_last_and_is_counted():
    compared = compare_settings(heads([0.6, 0.6], [0.9, math.nan]), own=0)
    assert compared["setting"].tolist() == [0, 1]
    assert compared["diverged"].tolist() == [0, 1]
    assert math.isnan(compared["valid_accuracy_mean"][1])


def test_where_every_setting_diverged_there_is_nothing_to_compare():
    with pytest.raises(UserError, match=r"lower the range sweep_head\.lr"):
        compare_settings(heads([math.nan, 0.5], [math.nan, math.nan]), own=0)


def test_a_large_lead_is_more_than_noise_and_a_small_one_is_not():
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.01, (20, 4))
    noise[-1] += 0.1
    far = compare_settings(heads(*(0.8 + noise).tolist()), own=0)
    assert lead_of_best(far, 4).is_more_than_noise
    assert "which is more than noise" in describe_lead(far, 4)
    near = compare_settings(heads(*(0.8 + noise[:-1]).tolist()), own=3)
    assert not lead_of_best(near, 4).is_more_than_noise
    assert "may be noise" in describe_lead(near, 4)


def test_where_nothing_differs_but_the_seeds_a_lead_is_seldom_taken_for_more():
    random = np.random.default_rng(1)
    taken = [
        lead_of_best(compare_settings(heads(*random.normal(0.8, 0.01, (16, 3)).tolist()), own=0), 3).is_more_than_noise
        for _ in range(100)
    ]
    assert sum(taken) <= 10


def test_one_seed_tells_nothing_of_noise():
    compared = compare_settings(heads([0.8], [0.9]), own=0)
    lead = lead_of_best(compared, 1)
    assert lead.difference == pytest.approx(0.1)
    assert not lead.is_more_than_noise
    assert "raise sweep_head.seeds" in describe_lead(compared, 1)


def test_where_the_recipes_own_is_best_or_diverged_the_sentence_says_so():
    assert describe_lead(compare_settings(heads([0.9, 0.9], [0.8, 0.8]), own=0), 2) == (
        "No setting is better than the recipe's own."
    )
    assert "diverged" in describe_lead(compare_settings(heads([0.9, math.nan], [0.8, 0.8]), own=0), 2)
