import numpy as np
import pytest

from pipeline.head_settings import Setting, draw_settings, value_at, with_setting
from pipeline.recipe import Recipe, flatten
from pipeline.recipe_sweep import HEAD_KEYS, Choice, IntRange, LogUniformRange, SweepHead, UniformRange

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
    setting = Setting(lr=0.02, weight_decay=0.3, dropout=0.1, label_smoothing=0.2, stored_epochs=7)
    changed = flatten(with_setting(Recipe(), setting))
    differing = {key: value for key, value in changed.items() if value != flatten(Recipe())[key]}
    assert differing == {
        "train_head.lr": 0.02,
        "train_head.weight_decay": 0.3,
        "head.dropout": 0.1,
        "train_head.label_smoothing": 0.2,
        "train_head.stored_epochs": 7,
    }
