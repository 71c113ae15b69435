"""Epoch records as metrics, under the same names in every stage, and as a table."""

from collections.abc import Collection, Sequence

import pandas as pd

from pipeline.training.keep import Trained, best_epoch
from pipeline.training.records import EpochRecord, kept_name

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
    long epoch logs no more points than a short one. Rates have no slash in their names, so that the tracking page shows
    them after the results."""
    step = record.step
    points = [
        ("train/loss", record.train_loss, step),
        ("valid/loss", record.valid_loss, step),
        ("valid/accuracy", record.valid_accuracy, step),
        ("valid/macro_f1", record.valid_macro_f1, step),
        ("train/seconds", record.seconds, step),
        ("overfit/gap", record.overfit_gap, step),
        ("train/images_per_second", record.images_per_second, step),
    ]
    stride = max(-(-len(record.steps) // POINTS_PER_EPOCH), 1)
    for one in record.steps[::stride]:
        points += [(f"rate_{group}", rate, one.step) for group, rate in one.rates.items()]
    return points


def best_metrics(records: Sequence[EpochRecord]) -> dict[str, float]:
    """The best results of a stage's epochs, and after which epoch; tables of runs show only the last value of a
    metric."""
    by_accuracy, by_loss = best_epoch(records, "best_accuracy"), best_epoch(records, "best_loss")
    return {
        "best_valid_accuracy": by_accuracy.valid_accuracy,
        "best_valid_accuracy_epoch": by_accuracy.epoch,
        "best_valid_loss": by_loss.valid_loss,
        "best_valid_loss_epoch": by_loss.epoch,
    }


def kept_metrics(trained: Trained) -> dict[str, float]:
    """The results of the weights that a stage keeps, under the names that `kept_name` gives, and the epoch after which
    the network had them; of a mean the last one."""
    results = trained.validated
    values = {"valid/loss": results.loss, "valid/accuracy": results.accuracy, "valid/macro_f1": results.macro_f1}
    return {kept_name(name): value for name, value in values.items()} | {"kept_epoch": trained.kept_epochs[-1]}


def epoch_table(records: Sequence[EpochRecord], kept_epochs: Collection[int] = ()) -> pd.DataFrame:
    """A row per epoch; `kept` says whether its weights are kept, or part of the mean that is."""
    rows = [
        {name: getattr(record, name) for name in EPOCH_COLUMNS} | {"kept": record.epoch in kept_epochs}
        for record in records
    ]
    return pd.DataFrame(rows, columns=[*EPOCH_COLUMNS, "kept"])


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


def describe_result(trained: Trained) -> str:
    """One line for the page of the run: how the kept weights validate, and how the losses went."""
    first, last, kept = trained.records[0], trained.records[-1], trained.validated
    return (
        f"Valid accuracy {kept.accuracy:.4f}, valid loss {kept.loss:.4f}. In {len(trained.records)} epochs the "
        f"training loss went from {first.train_loss:.4f} to {last.train_loss:.4f}, and the validation loss from "
        f"{first.valid_loss:.4f} to {last.valid_loss:.4f}."
    )


def describe_kept(trained: Trained) -> str:
    """One line for the console on the weights that are kept."""
    *others, last = map(str, trained.kept_epochs)
    epochs = f"the mean of epochs {', '.join(others)} and {last}" if others else f"epoch {last}"
    results = trained.validated
    return f"  kept: {epochs}, valid loss {results.loss:.4f}, valid accuracy {results.accuracy:.4f}"
