import math

import numpy as np
import pytest

from pipeline.sweep.tuned_keys import Key, varied_keys, weighed_keys
from tests.pipeline.sweep.studies import add, drawn_study, study_of


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        (Key("a", 0, 2), 0.5, 0.25),
        (Key("a", 1e-4, 1e-2, is_log=True), 1e-3, 0.5),
        (Key("a", choices=("x", "y", False)), "y", 0.5),
        (Key("a", choices=("x", "y", False)), False, 1.0),
    ],
)
def test_a_value_lies_where_its_scale_puts_it(key, value, place):
    assert key.place(value) == pytest.approx(place)
    assert math.isnan(key.place(None))


@pytest.mark.parametrize(
    ("key", "texts"),
    [
        (Key("rate", 1e-5, 1e-2, is_log=True), ["1e-5", "0.0001", "0.001", "0.01"]),
        (Key("ratio", 1, 30, is_log=True), ["1", "3", "10", "30"]),
        (Key("length", 1, 3, is_whole=True), ["1", "2", "3"]),
        (Key("strength", 0, 2), ["0", "0.5", "1", "1.5", "2"]),
        (Key("flips", choices=("none", True)), ["none", "True"]),
        (Key("narrow", 0.0011, 0.0012, is_log=True), ["0.0011", "0.0012"]),
    ],
)
def test_ticks_are_round_and_few(key, texts):
    ticks = key.ticks()
    assert [text for _, text in ticks] == texts
    assert all(-1e-6 <= place <= 1 + 1e-6 for place, _ in ticks)


def test_only_keys_that_differ_are_of_interest():
    study = study_of()
    add(study, 0.8, {"fine_tune.lr": 1e-3, "augment.strength": 1.0})
    add(study, 0.8, {"fine_tune.lr": 1e-4, "augment.strength": 1.0, "augment.flips": "none"})
    (key,) = varied_keys(study.trials)
    assert key == Key("fine_tune.lr", 1e-5, 1e-2, is_log=True)


def test_the_key_that_matters_weighs_most_and_how_sure_that_is_is_told():
    table = weighed_keys(drawn_study(60))
    assert table["key"][0] == "fine_tune.lr"
    assert table["share"].sum() == pytest.approx(1)
    assert (table["low"] <= table["high"]).all()
    assert (table["high"] - table["low"]).max() > 0
    assert set(table["key"]) == {
        "fine_tune.cycle_len", "fine_tune.lr", "fine_tune.weight_decay", "augment.strength", "augment.flips",
    }  # fmt: skip


def test_less_is_better_of_a_loss():
    more, less = drawn_study(40), study_of("minimize")
    for trial in more.trials:
        if trial.values:
            add(less, -trial.values[0], trial.params)
    np.testing.assert_allclose(weighed_keys(less)["share"], weighed_keys(more)["share"])


def test_few_trials_weigh_nothing():
    assert weighed_keys(drawn_study(9)).empty
    study = study_of()
    for number in range(12):
        add(study, 0.1 * number, {"fine_tune.lr": 1e-4 * (number + 1)})
    assert weighed_keys(study).empty, "one key has nothing to be weighed against"
