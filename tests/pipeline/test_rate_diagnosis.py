import pandas as pd
import pytest

from pipeline.rate_diagnosis import judge_rates


def epochs(train: list[float], valid: list[float], stage: str = "fine_tune", rate: float = 0.003) -> pd.DataFrame:
    return pd.DataFrame(
        {"run_id": f"run {stage}", "stage": stage, "phase": "", "rate": rate, "train_loss": train, "valid_loss": valid}
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
    assert judge_rates(epochs(train, valid)) == []


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
    (found,) = judge_rates(epochs(train, valid))
    assert found.name == "too high a rate"
    assert found.changes == {"fine_tune.lr": 0.001}
    assert "0.003" in found.words
    assert " → ".join(f"{loss:.3f}" for loss in train) in found.words
    assert " → ".join(f"{loss:.3f}" for loss in valid) in found.words


def test_a_training_loss_that_falls_to_the_end_as_fast_as_ever_had_too_low_a_rate():
    (found,) = judge_rates(epochs([0.411, 0.397, 0.362], [0.378, 0.383, 0.382], rate=1.56e-4))
    assert found.name == "too low a rate"
    assert found.changes == {"fine_tune.lr": pytest.approx(4.7e-4)}
    assert "0.411 → 0.397 → 0.362" in found.words


def test_each_run_is_judged_by_itself_and_named_by_its_stage():
    head = epochs([0.60, 0.40, 0.39], [0.5, 0.4, 0.4], "train_head")
    late = epochs([0.80, 0.79, 0.95], [0.5, 0.6, 0.7], "resize", 0.03)
    (found,) = judge_rates(pd.concat([head, late]))
    assert found.changes == {"resize.lr": 0.01}
    assert "The rate of resize, 0.03 at its top" in found.words


def test_epochs_on_stored_activations_are_not_compared_with_those_that_follow():
    head = epochs([0.30, 0.29, 0.43], [0.36, 0.36, 0.37], "train_head")
    assert [one.name for one in judge_rates(head)] == ["too high a rate"]
    head["phase"] = ["stored", "stored", ""]
    assert judge_rates(head) == []


def test_a_long_training_is_told_by_its_beginning_and_its_end():
    (found,) = judge_rates(epochs([0.5 + 0.05 * step for step in range(9)], [0.5] * 9))
    assert "0.500 → 0.550 → … → 0.750 → 0.800 → 0.850 → 0.900" in found.words


def test_without_epochs_there_is_nothing_to_say():
    assert judge_rates(epochs([], [])) == []
