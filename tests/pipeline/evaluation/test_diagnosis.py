import math
from functools import partial

import pandas as pd
import pytest

from pipeline.evaluation import diagnosis
from pipeline.evaluation.diagnosis import (
    OVERFIT_RATIO,
    SMALLEST_GAP,
    STRONG_RATIO,
    UNDERFIT_SHARE,
    diagnose_balance,
    diagnose_leakage,
    diagnose_rates,
    diagnose_size,
    diagnose_split_gap,
)
from pipeline.system.errors import UserError

diagnose = partial(diagnosis.diagnose_overfitting, fine_tune_cycles=2, head_dropout=0.5)


CHANCE = 0.7


A_LITTLE = 1e-6


@pytest.mark.parametrize(
    ("train", "valid", "verdict"),
    [
        (0.20, 0.22, "good"),
        (0.20, 0.10, "good"),
        (0.20, 0.20 * OVERFIT_RATIO - A_LITTLE, "good"),
        (0.20, 0.20 * OVERFIT_RATIO + A_LITTLE, "over-fitting"),
        (0.20, 0.20 * STRONG_RATIO - A_LITTLE, "over-fitting"),
        (0.20, 0.20 * STRONG_RATIO + A_LITTLE, "strongly over-fitting"),
        (0.001, 0.001 + SMALLEST_GAP - A_LITTLE, "good"),
        (0.001, 0.001 + SMALLEST_GAP + A_LITTLE, "strongly over-fitting"),
        (0.0, 0.0, "good"),
        (0.0, 0.5, "strongly over-fitting"),
        (UNDERFIT_SHARE * CHANCE - A_LITTLE, 0.6, "good"),
        (UNDERFIT_SHARE * CHANCE + A_LITTLE, 0.6, "under-fitting"),
        (CHANCE, CHANCE, "under-fitting"),
        (5.0, 0.2, "under-fitting"),
    ],
)
def test_the_verdict_turns_at_its_thresholds(train, valid, verdict):
    assert diagnose(train, valid, CHANCE).name == verdict


@pytest.mark.parametrize("losses", [(math.nan, 0.2), (0.2, math.nan), (math.inf, math.inf), (0.2, -math.inf)])
def test_losses_that_are_no_numbers_get_no_verdict(losses):
    with pytest.raises(UserError, match=r"losses are no numbers \(training .*, validation .*\); lower the rates"):
        diagnose(*losses, CHANCE)


def test_whether_a_loss_is_near_chance_depends_on_chance():
    assert diagnose(0.6, 0.65, chance_loss=0.69).name == "under-fitting"
    assert diagnose(0.6, 0.65, chance_loss=4.6).name == "good"


@pytest.mark.parametrize(
    ("losses", "next_step"),
    [((0.6876, 0.6912), "fine_tune.lr"), ((0.2012, 0.4021), "augment."), ((0.1012, 0.9034), "head.dropout")],
)
def test_a_bad_verdict_names_the_numbers_and_a_next_step(losses, next_step):
    words = diagnose(*losses, CHANCE).words
    assert f"training loss {losses[0]:.3f}" in words
    assert f"validation loss {losses[1]:.3f}" in words
    assert next_step in words


def test_a_good_verdict_names_the_numbers_too():
    assert diagnose(0.2012, 0.2134, CHANCE).words.endswith("training loss 0.201, validation loss 0.213.")


def test_under_fitting_is_told_against_the_loss_of_guessing():
    assert "guessing alone gives 0.700" in diagnose(0.69, 0.69, CHANCE).words


def test_over_fitting_tells_how_many_times_the_training_loss():
    assert "2.5 times the training loss" in diagnose(0.2, 0.5, CHANCE).words
    assert "over 100 times the training loss" in diagnose(0.0, 0.5, CHANCE).words


def test_the_words_say_strongly_where_the_name_does():
    assert "strongly over-fits" in diagnose(0.1, 0.5, CHANCE).words
    assert "strongly" not in diagnose(0.2, 0.4, CHANCE).words


@pytest.mark.parametrize(
    ("losses", "changes"),
    [((0.69, 0.69), {"fine_tune.cycles": 3}), ((0.1, 0.5), {"head.dropout": 0.7}), ((0.2, 0.21), {})],
)
def test_what_to_try_next_starts_from_what_the_recipe_says(losses, changes):
    assert diagnose(*losses, CHANCE).changes == changes


def test_dropout_is_raised_up_to_a_limit_and_never_lowered():
    for before, changes in ((0.0, {"head.dropout": 0.2}), (0.7, {"head.dropout": 0.8}), (0.9, {})):
        found = diagnosis.diagnose_overfitting(0.1, 0.5, CHANCE, fine_tune_cycles=2, head_dropout=before)
        assert found.changes == changes


COUNTS = pd.Series({"cat": 100, "dog": 90, "hen": 20})


RECALLS = pd.Series({"cat": 0.95, "dog": 0.9, "hen": 0.5})


def test_a_rare_class_that_is_missed_is_told_with_its_numbers():
    found = diagnose_balance(COUNTS, RECALLS, 0.9, None)
    assert found.name == "class imbalance"
    assert "hen has 20 training pictures where cat has 100" in found.words
    assert "only 50% of its pictures are found" in found.words
    assert found.changes == {"evaluate.positive_class": "hen"}
    assert diagnose_balance(COUNTS, RECALLS, 0.9, "hen").changes == {}


@pytest.mark.parametrize(
    ("counts", "recalls"),
    [
        ({"cat": 100, "dog": 51}, {"cat": 1.0, "dog": 0.2}),
        ({"cat": 100, "dog": 10}, {"cat": 0.9, "dog": 0.85}),
        ({"cat": 100, "dog": 10}, {"cat": 0.9, "dog": math.nan}),
    ],
    ids=["not rare", "found nearly as often", "not evaluated"],
)
def test_a_class_that_is_not_rare_or_does_not_suffer_is_not_told_of(counts, recalls):
    assert diagnose_balance(pd.Series(counts), pd.Series(recalls), 0.9, None) is None


def test_twins_in_training_are_told_with_the_accuracy_without_them():
    found = diagnose_leakage(47, 2, 656, "test", 0.843, 0.8309)
    assert found.name == "leakage"
    assert "47 of 656 test pictures (7.2%)" in found.words
    assert "2 of them the same file" in found.words
    assert "0.8430, and on the others 0.8309" in found.words
    assert "nan" not in diagnose_leakage(5, 5, 5, "test", 0.9, math.nan).words


@pytest.mark.parametrize(
    ("twins", "same_files", "is_told"), [(0, 0, False), (10, 0, False), (11, 0, True), (1, 1, True)]
)
def test_a_few_twins_do_not_matter_but_a_single_same_file_does(twins, same_files, is_told):
    assert (diagnose_leakage(twins, same_files, 1000, "test", 0.9, 0.9) is not None) == is_told


def test_a_test_split_that_is_far_easier_than_validation_is_suspicious():
    found = diagnose_split_gap(0.80, 400, 0.95, seed=4)
    assert found.name == "test easier than validation"
    assert "0.9500" in found.words
    assert "0.8000 (7.5 standard errors on 400 validation pictures)" in found.words
    assert found.changes == {"seed": 5}


@pytest.mark.parametrize(
    ("valid", "pictures", "test"), [(0.80, 400, 0.83), (0.80, 20, 0.95), (0.9, 9000, 0.94), (0.95, 400, 0.8)]
)
def test_a_gap_that_chance_explains_or_that_is_small_or_the_other_way_round_is_not(valid, pictures, test):
    assert diagnose_split_gap(valid, pictures, test, seed=0) is None


def test_a_class_with_few_training_pictures_is_named():
    found = diagnose_size(pd.Series({"cat": 100, "hen": 7}), "test", 500, (0.9, 0.93), 0.25)
    assert found.name == "too few pictures"
    assert "Fewer than 20 training pictures: hen 7." in found.words
    assert found.changes == {}


def test_a_wide_interval_is_told_and_more_pictures_are_to_be_held_out():
    found = diagnose_size(COUNTS, "test", 56, (0.518, 0.768), 0.25)
    assert "With 56 test pictures the accuracy is known no better than 51.8% to 76.8%" in found.words
    assert found.changes == {"data.test_fraction": 0.4}
    assert diagnose_size(COUNTS, "valid", 56, (0.518, 0.768), 0.25).changes == {}


def test_advice_is_none_that_cannot_apply():
    found = diagnose_size(COUNTS, "test", 56, (0.518, 0.768), 0.25, is_drawn=False)
    assert "fraction" not in found.words
    assert found.changes == {}
    assert "fraction" not in diagnose_size(COUNTS, "valid", 56, (0.518, 0.768), 0.25, is_drawn=False).words
    given = diagnose_split_gap(0.80, 400, 0.95, seed=4, is_drawn=False)
    assert "seed" not in given.words
    assert given.changes == {}
    assert diagnose_split_gap(0.80, 400, 0.95, seed=4, split_seed=7).changes == {"data.split_seed": 8}
    at_most = diagnosis.diagnose_overfitting(0.05, 0.5, CHANCE, fine_tune_cycles=2, head_dropout=0.8)
    assert "dropout" not in at_most.words
    assert at_most.changes == {}


def test_enough_pictures_are_not_told_of():
    assert diagnose_size(COUNTS, "test", 500, (0.88, 0.93), 0.25) is None


def test_of_many_rare_classes_some_are_named_and_the_others_counted():
    counts = pd.Series({f"class {number}": number + 1 for number in range(12)})
    words = diagnose_size(counts, "test", 900, (0.9, 0.92), 0.25).words
    assert "class 0 1, class 1 2, class 2 3, class 3 4, class 4 5 and 7 more classes" in words


def epochs(train: list[float], valid: list[float], stage: str = "fine_tune", rate: float = 0.003) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_id": f"run {stage}",
            "stage": stage,
            "phase": "",
            "rate": rate,
            "rate_key": f"{stage}.lr",
            "train_loss": train,
            "valid_loss": valid,
        }
    )


GOOD = {
    "falls and flattens": ([0.60, 0.42, 0.39, 0.385], [0.50, 0.41, 0.40, 0.40]),
    "one epoch": ([0.5], [0.5]),
    "two epochs": ([0.44, 0.40], [0.42, 0.41]),
    "over-fits": ([0.070, 0.050, 0.035], [0.324, 0.324, 0.325]),
    "over-fits more and more": ([0.5, 0.3, 0.1, 0.05], [0.40, 0.45, 0.55, 0.70]),
    "wobbles a little": ([0.40, 0.38, 0.39, 0.37], [0.40, 0.42, 0.40, 0.42]),
    "falls to nothing": ([0.3, 0.001, 0.0], [0.2, 0.0, 0.0]),
}


@pytest.mark.parametrize(("train", "valid"), GOOD.values(), ids=GOOD)
def test_nothing_is_said_of_a_rate_that_was_right(train, valid):
    assert diagnose_rates(epochs(train, valid)) == []


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ([0.50, 0.62, 0.70], [0.45, 0.50, 0.60]),
        ([0.50, 0.48, 0.52, 0.49], [0.40, 0.62, 0.45, 0.70]),
        ([0.50, 0.51, 0.50], [0.40, 0.75, 0.42]),
    ],
    ids=["the training loss rises", "the validation loss zigzags", "the validation loss leaps"],
)
def test_a_rate_that_was_too_high_is_told_with_the_losses_and_a_third_of_it_to_try(train, valid):
    (found,) = diagnose_rates(epochs(train, valid))
    assert found.name == "too high a rate"
    assert found.changes == {"fine_tune.lr": 0.001}
    assert "0.003" in found.words
    assert " → ".join(f"{loss:.3f}" for loss in train) in found.words
    assert " → ".join(f"{loss:.3f}" for loss in valid) in found.words


def test_a_training_loss_that_falls_to_the_end_as_fast_as_ever_had_too_low_a_rate():
    (found,) = diagnose_rates(epochs([0.411, 0.397, 0.362], [0.378, 0.383, 0.382], rate=1.56e-4))
    assert found.name == "too low a rate"
    assert found.changes == {"fine_tune.lr": pytest.approx(4.7e-4)}
    assert "0.411 → 0.397 → 0.362" in found.words


def test_each_run_is_evaluated_by_itself_and_named_by_its_stage():
    head = epochs([0.60, 0.40, 0.39], [0.5, 0.4, 0.4], "train_head")
    late = epochs([0.80, 0.79, 0.95], [0.5, 0.6, 0.7], "resize", 0.03)
    (found,) = diagnose_rates(pd.concat([head, late]))
    assert found.changes == {"resize.lr": 0.01}
    assert "The rate of resize, 0.03 at its top" in found.words


def test_epochs_on_stored_activations_are_not_compared_with_those_that_follow():
    head = epochs([0.30, 0.29, 0.43], [0.36, 0.36, 0.37], "train_head")
    assert [one.name for one in diagnose_rates(head)] == ["too high a rate"]
    head["phase"] = ["stored", "stored", ""]
    assert diagnose_rates(head) == []


def test_a_long_training_is_told_by_its_beginning_and_its_end():
    (found,) = diagnose_rates(epochs([0.5 + 0.05 * step for step in range(9)], [0.5] * 9))
    assert "0.500 → 0.550 → … → 0.750 → 0.800 → 0.850 → 0.900" in found.words


def test_without_epochs_there_is_nothing_to_say():
    assert diagnose_rates(epochs([], [])) == []
