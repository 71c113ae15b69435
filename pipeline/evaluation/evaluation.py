"""Evaluates a network, or the mean of several: one table of predictions, and every number derived from it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from pipeline.data.augment import view_matrices
from pipeline.data.manifest import Manifest
from pipeline.evaluation.calibration import apply_temperature, choose_temperature, expected_calibration_error
from pipeline.evaluation.diagnosis import (
    Verdict,
    diagnose_balance,
    diagnose_leakage,
    diagnose_overfitting,
    diagnose_rates,
    diagnose_size,
    diagnose_split_gap,
)
from pipeline.evaluation.ensembles.gain import describe_ensemble, ensemble_metrics
from pipeline.evaluation.ensembles.members import Member, predict_members
from pipeline.evaluation.label_errors import label_errors, training_label_errors
from pipeline.evaluation.metrics import (
    Probabilities,
    accuracy_interval,
    all_metrics,
    positive_class,
    probabilities_of,
    split_metrics,
    targets_of,
)
from pipeline.evaluation.near_duplicates import Activations, near_duplicates
from pipeline.evaluation.neighbours import choose_kept
from pipeline.evaluation.predict import losses
from pipeline.evaluation.predictions import Predictions
from pipeline.recipe.schema import Recipe
from pipeline.system.arrays import Rows

# With fewer pictures of a class its recall says little.
FEWEST_EVALUATED = 10


@dataclass(frozen=True)
class Evaluation:
    """`metrics` are named as they are logged. `verdict` is the one on over-fitting, `verdicts` are all further ones
    that were reached. `valid_activations` are the head's input for the validation pictures, in the order of the
    predictions table, and `kept_activations` for the training pictures at the manifest's rows `kept_rows`. `seed` draws
    the samples that are shown. `training_label_errors` are None where training pictures were not cross-validated.
    `corrected` are the pictures whose labels a person has decided on, which are not doubted. `members` has a row for
    each network whose probabilities are averaged, with its results on the validation pictures; `epochs` and activations
    are of the first of them."""

    name: str
    predictions: Predictions
    metrics: dict[str, float]
    verdict: Verdict
    verdicts: list[Verdict]
    label_errors: pd.DataFrame
    near_duplicates: pd.DataFrame
    epochs: pd.DataFrame = field(repr=False)
    valid_activations: npt.NDArray[np.float16] = field(repr=False)
    kept_activations: npt.NDArray[np.float16] = field(repr=False)
    kept_rows: Rows = field(repr=False)
    seed: int
    training_label_errors: pd.DataFrame | None = None
    corrected: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    members: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    @property
    def split(self) -> str:
        """The split that the model is evaluated on."""
        return self.predictions.split

    @property
    def ensemble(self) -> str:
        """How the ensemble compares with its networks, in a sentence; empty where there is one network."""
        accuracy, loss = (self.metrics.get(f"valid/{name}", math.nan) for name in ("accuracy", "loss"))
        return describe_ensemble(self.members, accuracy, loss)

    @property
    def decided(self) -> list[str]:
        """The content hashes of the pictures whose labels a person has decided on."""
        return self.corrected["hash"].tolist() if len(self.corrected) else []

    def headline(self) -> str:
        """One sentence with the figures that matter most."""
        of = {name: self.metrics[f"{self.split}/{name}"] for name in ("accuracy", "accuracy_low", "accuracy_high")}
        return (
            f"Accuracy {of['accuracy']:.4f} (95% interval {of['accuracy_low']:.3f} to {of['accuracy_high']:.3f}) on "
            f"{len(self.predictions.evaluated)} {self.split} pictures (with TTA "
            f"{self.metrics[f'{self.split}/tta_accuracy']:.4f}), macro F1 {self.metrics[f'{self.split}/macro_f1']:.4f}."
        )

    @cached_property
    def splits_table(self) -> pd.DataFrame:
        """`split`, `accuracy`, `macro F1`, `loss` and `pictures` of each split, and with TTA of the one evaluated."""
        pictures = self.predictions.table["split"].value_counts()
        prefixes = {"train": "train/plain_", "valid": "valid/", self.split: f"{self.split}/"}
        rows = [(split, prefix, int(pictures[split])) for split, prefix in prefixes.items()]
        rows.append((f"{self.split}, with TTA", f"{self.split}/tta_", int(pictures[self.split])))
        names = ("accuracy", "macro_f1", "loss")
        return pd.DataFrame(
            [(split, *(self.metrics[f"{prefix}{name}"] for name in names), count) for split, prefix, count in rows],
            columns=["split", "accuracy", "macro F1", "loss", "pictures"],
        )

    @cached_property
    def tta_table(self) -> pd.DataFrame:
        """Every metric of the split evaluated: `plain`, beside what it is with TTA."""
        prefix = f"{self.split}/"
        names = [name.removeprefix(f"{prefix}tta_") for name in self.metrics if name.startswith(f"{prefix}tta_")]
        return pd.DataFrame(
            {
                "metric": [name.replace("_", " ") for name in names],
                "plain": [self.metrics.get(f"{prefix}{name}", math.nan) for name in names],
                "with TTA": [self.metrics[f"{prefix}tta_{name}"] for name in names],
            }
        )


def evaluate(
    recipe: Recipe,
    members: Iterable[Member],
    manifest: Manifest,
    stored: Activations,
    epochs: pd.DataFrame,
    device: torch.device,
    out_of_fold: Probabilities | None = None,
) -> Evaluation:
    """Predict every picture once as it is, and those of the split evaluated once more with TTA, by the mean of the
    `members`; then derive all else from the table, from the `stored` activations of the frozen body, from the `epochs`
    of training and, where they were cross-validated, from the training pictures' `out_of_fold` probabilities.

    UserError if `evaluate.positive_class` is no class.
    """
    settings, seed = recipe.evaluate, recipe.seed
    training_counts = manifest.table.loc[manifest.rows("train"), "label"].value_counts()
    positive = positive_class(settings.positive_class, training_counts)
    views = view_matrices(recipe.augment.flip, recipe.augment.crop, settings.tta_views)
    split = "test" if len(manifest.rows("test")) else "valid"
    train = manifest.rows("train")
    kept = choose_kept(train, manifest.table["label"].iloc[train].tolist(), settings.neighbours, seed)
    predicted = predict_members(members, manifest, views, settings.batch_size, device, split, kept)
    predictions = _calibrate(split, manifest.classes, predicted.table, positive)
    metrics = _metrics(predictions, seed)
    metrics |= ensemble_metrics(predicted.members, metrics["valid/accuracy"])
    twins = near_duplicates(manifest.table, stored, settings.duplicate_similarity, device)
    plain_losses = metrics["train/plain_loss"], metrics["valid/loss"]
    verdict = diagnose_overfitting(
        *plain_losses, _chance_loss(training_counts), recipe.fine_tune.cycles, recipe.head.dropout
    )
    interval = metrics[f"{split}/accuracy_low"], metrics[f"{split}/accuracy_high"]
    pictures = len(predictions.evaluated)
    further = [
        _diagnose_leakage(predictions, twins),
        _diagnose_split_gap(metrics, len(predictions.of("valid")), split, recipe, bool(manifest.drawn)),
        *diagnose_rates(epochs),
        _diagnose_balance(predictions, training_counts, metrics[f"{split}/accuracy"]),
        diagnose_size(training_counts, split, pictures, interval, recipe.data.test_fraction, split in manifest.drawn),
    ]
    decided, doubted = set(manifest.corrected["hash"]), None
    if out_of_fold is not None:
        doubted = training_label_errors(manifest.table, manifest.classes, out_of_fold, decided)
    return Evaluation(
        name=manifest.name,
        predictions=predictions,
        metrics=metrics,
        verdict=verdict,
        verdicts=[one for one in further if one is not None],
        label_errors=label_errors(predictions.table, manifest.classes, decided),
        near_duplicates=twins,
        epochs=epochs,
        valid_activations=predicted.valid_activations,
        kept_activations=predicted.kept_activations,
        kept_rows=kept,
        seed=seed,
        training_label_errors=doubted,
        corrected=manifest.corrected,
        members=predicted.members,
    )


def _calibrate(split: str, classes: list[str], table: pd.DataFrame, positive: str | None) -> Predictions:
    """Choose the temperature by the validation rows, and add the column `calibrated_confidence`."""
    valid = table[table["split"] == "valid"]
    temperature, uncalibrated = choose_temperature(probabilities_of(valid, classes), targets_of(valid, classes))
    table["calibrated_confidence"] = apply_temperature(probabilities_of(table, classes), temperature).max(1)
    return Predictions(split, classes, table, temperature, positive, uncalibrated)


def _metrics(predictions: Predictions, seed: int) -> dict[str, float]:
    split, classes, evaluated = predictions.split, predictions.classes, predictions.evaluated
    train = split_metrics(predictions.of("train"), classes)
    metrics = {f"train/plain_{name}": value for name, value in train.items()}
    for name in dict.fromkeys(("valid", split)):
        metrics |= {f"{name}/{key}": value for key, value in all_metrics(predictions.of(name), classes).items()}
    metrics |= {f"{split}/{key}": value for key, value in all_metrics(evaluated, classes, "tta_").items()}
    low, high = accuracy_interval((evaluated["label"] == evaluated["predicted"]).to_numpy(), seed)
    metrics |= {f"{split}/accuracy_low": low, f"{split}/accuracy_high": high}
    metrics["plain_overfit_gap"] = metrics["valid/loss"] - metrics["train/plain_loss"]
    of_targets = predictions.calibrated[np.arange(len(evaluated)), predictions.targets]
    return metrics | {
        f"{split}/ece": expected_calibration_error(predictions.reliability),
        f"{split}/calibrated_ece": expected_calibration_error(predictions.calibrated_reliability),
        f"{split}/calibrated_loss": float(losses(of_targets).mean()),
        "temperature": predictions.temperature,
    }


def _diagnose_leakage(predictions: Predictions, twins: pd.DataFrame) -> Verdict | None:
    evaluated, split = predictions.evaluated, predictions.split
    leaked = twins[(twins["split"] == split) & (twins["twin_split"] == "train")]
    is_right = evaluated["label"] == evaluated["predicted"]
    without = is_right[~evaluated["row"].isin(leaked["row"])]
    return diagnose_leakage(
        len(leaked),
        int(leaked["same_file"].sum()),
        len(evaluated),
        split,
        float(is_right.mean()),
        float(without.mean()) if len(without) else math.nan,
    )


def _diagnose_split_gap(
    metrics: dict[str, float], valid_pictures: int, split: str, recipe: Recipe, is_drawn: bool
) -> Verdict | None:
    if split != "test":
        return None
    accuracies = metrics["valid/accuracy"], valid_pictures, metrics["test/accuracy"]
    return diagnose_split_gap(*accuracies, recipe.seed, recipe.data.split_seed, is_drawn)


def _diagnose_balance(predictions: Predictions, training_counts: pd.Series, accuracy: float) -> Verdict | None:
    by_class = predictions.by_class.set_index("class")
    recalls = by_class["recall"].where(by_class["pictures"] >= FEWEST_EVALUATED)
    return diagnose_balance(training_counts, recalls, accuracy, predictions.positive)


def _chance_loss(training_counts: pd.Series) -> float:
    """The loss of guessing by the training split's class shares: their entropy."""
    shares = training_counts / training_counts.sum()
    return float(-sum(share * math.log(share) for share in shares))
