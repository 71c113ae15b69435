import math

import pytest

from pipeline.diagnosis import OVERFIT_RATIO, SMALLEST_GAP, STRONG_RATIO, UNDERFIT_SHARE, diagnose
from pipeline.errors import UserError

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
