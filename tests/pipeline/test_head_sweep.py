"""Settings of a head are compared by their means over seeds, and a lead is held against the noise."""

import math

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.head_settings import Setting
from pipeline.head_sweep import compare_settings, describe_lead, lead_of_best, train_settings
from pipeline.many_heads import HeadSetting
from tests.pipeline.stored_classes import CLASSES, stored_batches, trained_alone


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
    settings = [Setting(1e-2, 0.1, 0.5, 0.1, 2), Setting(3e-3, 0.0, 0.0, 0.0, 1)]
    batches = stored_batches()
    table = train_settings(settings, [4, 6], CLASSES, 0, *batches)
    assert table[["setting", "seed"]].to_numpy().tolist() == [[0, 4], [0, 6], [1, 4], [1, 6]]
    assert table["stored_epochs"].tolist() == [2, 2, 1, 1]
    _, records = trained_alone(HeadSetting(6, 1e-2, 0.1, 0.5, 0.1), 0, batches, [2])
    assert table["valid_loss"][1] == pytest.approx(records[-1].valid_loss, rel=1e-5)
    assert table["valid_accuracy"][1] == records[-1].valid_accuracy
    assert table["train_loss"][1] == pytest.approx(records[-1].train_loss, rel=1e-5)


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
