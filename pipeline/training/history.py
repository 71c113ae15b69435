"""Epoch records as metrics, under the same names in every stage, and as a table."""

from collections.abc import Sequence

import pandas as pd

from pipeline.training.fit import EpochRecord

POINTS_PER_EPOCH = 40
EPOCH_COLUMNS = [
    "epoch",
    "step",
    "cycle",
    "train_loss",
    "valid_loss",
    "valid_accuracy",
    "valid_macro_f1",
    "seconds",
    "images_per_second",
]


def epoch_points(record: EpochRecord) -> list[tuple[str, float, int]]:
    """(name, value, step) of one epoch: its results at its last step, and the rates within it, thinned out so that a
    long epoch logs no more points than a short one."""
    step = record.step
    points = [
        ("train/loss", record.train_loss, step),
        ("valid/loss", record.valid_loss, step),
        ("valid/accuracy", record.valid_accuracy, step),
        ("valid/macro_f1", record.valid_macro_f1, step),
        ("train/seconds", record.seconds, step),
        ("overfit/gap", record.overfit_gap, step),
        ("throughput/images_per_second", record.images_per_second, step),
    ]
    stride = max(-(-len(record.steps) // POINTS_PER_EPOCH), 1)
    for one in record.steps[::stride]:
        points += [(f"lr/{group}", rate, one.step) for group, rate in one.rates.items()]
    return points


def best_metrics(records: Sequence[EpochRecord]) -> dict[str, float]:
    """The best results of a stage's epochs; tables of runs show only the last value of a metric."""
    return {
        "best/valid_accuracy": max(record.valid_accuracy for record in records),
        "best/valid_loss": min(record.valid_loss for record in records),
    }


def epoch_table(records: Sequence[EpochRecord]) -> pd.DataFrame:
    """A row per epoch."""
    rows = [{name: getattr(record, name) for name in EPOCH_COLUMNS} for record in records]
    return pd.DataFrame(rows, columns=EPOCH_COLUMNS)


def step_table(records: Sequence[EpochRecord]) -> pd.DataFrame:
    """A row per optimizer step: `step`, `loss`, and a column per layer group with its rate."""
    steps = [one for record in records for one in record.steps]
    return pd.DataFrame([{"step": one.step, "loss": one.loss, **one.rates} for one in steps])


def describe_epoch(record: EpochRecord) -> str:
    """One line for the console."""
    return (
        f"  epoch {record.epoch}: train loss {record.train_loss:.4f}, valid loss {record.valid_loss:.4f}, "
        f"valid accuracy {record.valid_accuracy:.4f}, {record.images_per_second:,.0f} images/s"
    )
