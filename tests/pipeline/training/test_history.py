import itertools
import math
from dataclasses import replace

import pytest

from pipeline.training.fit import Validated
from pipeline.training.history import (
    best_metrics,
    describe_epoch,
    describe_kept,
    describe_result,
    epoch_points,
    epoch_table,
    kept_metrics,
    step_table,
)
from pipeline.training.keep import Trained
from pipeline.training.records import EpochRecord, StepRecord


def record(steps: int = 3, first: int = 11, epoch: int = 4) -> EpochRecord:
    taken = [
        StepRecord(first + index, 1.0 - 0.01 * index, {"early": 0.001 * (index + 1), "head": 0.01 * (index + 1)})
        for index in range(steps)
    ]
    return EpochRecord(
        epoch=epoch,
        step=first + steps - 1,
        cycle=2,
        train_loss=0.5,
        valid_loss=0.75,
        valid_accuracy=0.875,
        valid_macro_f1=0.85,
        seconds=2.0,
        images_per_second=1234.5,
        steps=taken,
    )


def test_an_epochs_results_stand_at_its_last_step() -> None:
    results = [point for point in epoch_points(record()) if not point[0].startswith("rate_")]
    assert results == [
        ("train/loss", 0.5, 13),
        ("valid/loss", 0.75, 13),
        ("valid/accuracy", 0.875, 13),
        ("valid/macro_f1", 0.85, 13),
        ("train/seconds", 2.0, 13),
        ("overfit/gap", 0.25, 13),
        ("train/images_per_second", 1234.5, 13),
    ]


def test_the_rates_of_a_short_epoch_stand_at_every_step_by_layer_group() -> None:
    rates = [point for point in epoch_points(record()) if point[0].startswith("rate_")]
    assert [point for point in rates if point[0] == "rate_head"] == [
        ("rate_head", 0.01, 11),
        ("rate_head", 0.02, 12),
        ("rate_head", 0.03, 13),
    ]
    assert [step for name, _, step in rates if name == "rate_early"] == [11, 12, 13]
    assert len(rates) == 6


@pytest.mark.parametrize("steps", [1, 39, 40, 41, 80, 81, 1000, 12345])
def test_a_long_epoch_logs_about_as_many_rates_as_one_of_forty_steps(steps: int) -> None:
    logged = [step for name, _, step in epoch_points(record(steps)) if name == "rate_head"]
    assert len(logged) <= 40
    assert len(logged) >= min(steps, 20)
    assert logged[0] == 11


def test_thinned_rates_are_evenly_spaced_and_stay_with_their_steps() -> None:
    thinned = [(rate, step) for name, rate, step in epoch_points(record(1000)) if name == "rate_head"]
    assert {after[1] - before[1] for before, after in itertools.pairwise(thinned)} == {25}
    assert all(math.isclose(rate, 0.01 * (step - 10)) for rate, step in thinned)


def test_the_best_is_the_highest_accuracy_and_the_lowest_loss_of_any_epoch_which_is_named() -> None:
    epochs = [
        replace(record(epoch=epoch), valid_accuracy=accuracy, valid_loss=loss)
        for epoch, accuracy, loss in [(4, 0.7, 0.4), (5, 0.9, 0.5), (6, 0.8, 0.6)]
    ]
    assert best_metrics(epochs) == {
        "best_valid_accuracy": 0.9,
        "best_valid_accuracy_epoch": 5,
        "best_valid_loss": 0.4,
        "best_valid_loss_epoch": 4,
    }


def test_what_is_kept_is_told_with_its_epochs_and_its_own_results() -> None:
    trained = Trained([record()], [4, 6, 9], Validated(0.3, 0.95, 0.9))
    assert kept_metrics(trained) == {
        "kept_valid_loss": 0.3, "kept_valid_accuracy": 0.95, "kept_valid_macro_f1": 0.9, "kept_epoch": 9
    }  # fmt: skip
    assert describe_kept(trained) == "  kept: the mean of epochs 4, 6 and 9, valid loss 0.3000, valid accuracy 0.9500"
    assert describe_kept(replace(trained, kept_epochs=[4])).startswith("  kept: epoch 4, valid loss 0.3000")


def test_the_result_of_a_stage_is_how_its_kept_weights_validate_and_how_its_losses_went() -> None:
    records = [record(), replace(record(epoch=5), train_loss=0.25, valid_loss=0.5)]
    assert describe_result(Trained(records, [4], Validated(0.3, 0.95, 0.9))) == (
        "Valid accuracy 0.9500, valid loss 0.3000. In 2 epochs the training loss went from 0.5000 to 0.2500, and the "
        "validation loss from 0.7500 to 0.5000."
    )


def test_the_epoch_table_has_a_row_per_epoch() -> None:
    table = epoch_table([record(), record(first=14, epoch=5)], [5])
    assert table["kept"].tolist() == [False, True]
    assert table.iloc[0].to_dict() == {
        "epoch": 4,
        "step": 13,
        "cycle": 2,
        "train_loss": 0.5,
        "valid_loss": 0.75,
        "valid_accuracy": 0.875,
        "valid_macro_f1": 0.85,
        "seconds": 2.0,
        "images_per_second": 1234.5,
        "kept": False,
    }
    assert table["epoch"].tolist() == [4, 5]
    assert table["step"].tolist() == [13, 16]


def test_a_table_of_no_epochs_still_has_its_columns() -> None:
    assert {"epoch", "step", "train_loss", "valid_loss"} <= set(epoch_table([]).columns)


def test_the_step_table_has_a_row_per_step_and_a_rate_per_layer_group() -> None:
    table = step_table([record(), record(first=14, epoch=5)])
    assert list(table.columns) == ["step", "loss", "early", "head"]
    assert table["step"].tolist() == [11, 12, 13, 14, 15, 16]
    assert table.iloc[1].to_dict() == pytest.approx({"step": 12, "loss": 0.99, "early": 0.002, "head": 0.02})


def test_the_line_for_the_console_names_epoch_losses_and_accuracy() -> None:
    line = describe_epoch(record())
    assert "\n" not in line
    for words in ("epoch 4", "train loss 0.5000", "valid loss 0.7500", "valid accuracy 0.8750", "images/s"):
        assert words in line
