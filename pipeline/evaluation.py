"""A network looked at: one table of predictions, and all that is found in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.calibration import apply_temperature, expected_calibration_error, fit_temperature, reliability
from pipeline.curves import operating_points, positive_class
from pipeline.decode import Pixels
from pipeline.diagnosis import Verdict, diagnose, judge_balance, judge_leakage, judge_size, judge_split_gap
from pipeline.label_errors import label_errors
from pipeline.manifest import Manifest
from pipeline.metrics import (
    accuracy_interval,
    all_metrics,
    class_metrics,
    probabilities_of,
    split_metrics,
    targets_of,
)
from pipeline.near_duplicates import Activations, near_duplicates
from pipeline.network import Network
from pipeline.predict import losses, predict, predict_with_activations, predictions_table
from pipeline.rate_diagnosis import judge_rates
from pipeline.report import markdown_table

WORST_CLASSES = 8
# With fewer pictures of a class its recall says little.
FEWEST_JUDGED = 10


@dataclass(frozen=True)
class Evaluation:
    """`table` is the predictions table of all splits; `split` is the one that the model is judged on: test, or
    valid where there is no test split. `metrics` are named as they are logged. `temperature` was fitted on the
    validation split. `verdict` is that on over-fitting, `verdicts` are all further ones that were reached.
    `valid_activations` are what the head saw of the validation pictures, in the order of the table."""

    name: str
    split: str
    classes: list[str]
    table: pd.DataFrame
    metrics: dict[str, float]
    temperature: float
    positive: str | None
    verdict: Verdict
    verdicts: list[Verdict]
    label_errors: pd.DataFrame
    near_duplicates: pd.DataFrame
    epochs: pd.DataFrame = field(repr=False)
    valid_activations: npt.NDArray[np.float16] = field(repr=False)

    @property
    def judged(self) -> pd.DataFrame:
        """The rows of the split that the model is judged on."""
        return self.table[self.table["split"] == self.split]

    def headline(self) -> str:
        """One sentence with the figures that matter most."""
        of = {name: self.metrics[f"{self.split}/{name}"] for name in ("accuracy", "accuracy_low", "accuracy_high")}
        return (
            f"Accuracy {of['accuracy']:.4f} (95% interval {of['accuracy_low']:.3f} to {of['accuracy_high']:.3f}) on "
            f"{len(self.judged)} {self.split} pictures (with TTA {self.metrics[f'{self.split}/tta_accuracy']:.4f}), "
            f"macro F1 {self.metrics[f'{self.split}/macro_f1']:.4f}."
        )

    def splits_table(self) -> pd.DataFrame:
        """A row per split, and one for TTA on the split judged: `split`, `accuracy`, `macro F1`, `loss`, `pictures`."""
        rows = [
            self._row(split, split_metrics(part, self.classes), "", len(part))
            for split, part in self.table.groupby("split", sort=False)
        ]
        with_tta = split_metrics(self.judged, self.classes, "tta_")
        rows.append(self._row(f"{self.split}, with TTA", with_tta, "tta_", len(self.judged)))
        return pd.DataFrame(rows)

    def tta_table(self) -> pd.DataFrame:
        """Every metric of the split judged: `plain`, beside what it is with TTA."""
        prefix = f"{self.split}/"
        names = [name.removeprefix(f"{prefix}tta_") for name in self.metrics if name.startswith(f"{prefix}tta_")]
        return pd.DataFrame(
            {
                "metric": [name.replace("_", " ") for name in names],
                "plain": [self.metrics.get(f"{prefix}{name}", math.nan) for name in names],
                "with TTA": [self.metrics[f"{prefix}tta_{name}"] for name in names],
            }
        )

    def operating_table(self) -> pd.DataFrame:
        """The operating points of the positive class on the split judged, by its calibrated probability; no row where
        there is no positive class."""
        if self.positive is None:
            return pd.DataFrame(columns=["threshold", "precision", "recall", "flagged"])
        calibrated = apply_temperature(probabilities_of(self.judged, self.classes), self.temperature)
        is_positive = (self.judged["label"] == self.positive).to_numpy()
        return operating_points(is_positive, calibrated[:, self.classes.index(self.positive)])

    def summary(self) -> str:
        """What the run's page says, in Markdown: the headline, every verdict, and short tables."""
        worst = class_metrics(self.judged, self.classes).nsmallest(WORST_CLASSES, "f1")
        note = "" if self.split == "test" else "There is no test split: the model is judged on validation pictures.\n\n"
        verdicts = "\n".join(f"- **{one.name}**: {one.words}" for one in (self.verdict, *self.verdicts))
        found = (
            f"{len(self.label_errors)} labels are likely wrong (label_errors.csv), and {len(self.near_duplicates)} "
            "pictures have a near-duplicate in another split (near_duplicates.csv). All figures are in report.html."
        )
        which = f"The {WORST_CLASSES} classes with the lowest F1:\n\n" if len(self.classes) > WORST_CLASSES else ""
        tables = f"{markdown_table(self.splits_table())}\n\n{which}{markdown_table(worst)}"
        return f"{self.headline()}\n\n{verdicts}\n\n{note}{found}\n\n{tables}\n"

    @staticmethod
    def _row(name: object, metrics: dict[str, float], prefix: str, pictures: int) -> dict[str, object]:
        return {
            "split": name,
            "accuracy": metrics[f"{prefix}accuracy"],
            "macro F1": metrics[f"{prefix}macro_f1"],
            "loss": metrics[f"{prefix}loss"],
            "pictures": pictures,
        }


def evaluate(
    network: Network,
    manifest: Manifest,
    pixels: Pixels,
    views: Tensor,
    batch_size: int,
    device: torch.device,
    *,
    positive: str,
    stored: Activations,
    duplicate_similarity: float,
    epochs: pd.DataFrame,
    fine_tune_cycles: int,
    head_dropout: float,
    test_fraction: float,
    seed: int,
) -> Evaluation:
    """Predict every picture once as it is, and those of the split judged once more as the mean over `views`; then
    derive all else from the table, from the `stored` activations of the frozen body and from the `epochs` of training.

    UserError if `positive` is no class.
    """
    training_counts = manifest.table.loc[manifest.rows("train"), "label"].value_counts()
    positive_ = positive_class(positive, training_counts)
    split = "test" if len(manifest.rows("test")) else "valid"
    table, valid_activations = _predict_all(network, manifest, pixels, views, batch_size, device, split)
    valid = table[table["split"] == "valid"]
    temperature = fit_temperature(probabilities_of(valid, manifest.classes), targets_of(valid, manifest.classes))
    served = apply_temperature(probabilities_of(table, manifest.classes), temperature)
    table["calibrated_confidence"] = served.max(1)
    metrics = _metrics(table, manifest.classes, split, temperature, seed)
    twins = near_duplicates(manifest.table, stored, duplicate_similarity)
    chance_loss = _chance_loss(training_counts)
    plain_losses = metrics["train/plain_loss"], metrics["valid/loss"]
    verdict = diagnose(*plain_losses, chance_loss, fine_tune_cycles, head_dropout)
    judged = table[table["split"] == split]
    further = [
        _judge_leakage(judged, twins, split),
        _judge_split_gap(metrics, len(valid), split, seed),
        *judge_rates(epochs),
        _judge_balance(judged, manifest.classes, training_counts, metrics[f"{split}/accuracy"], positive_),
        judge_size(
            training_counts,
            split,
            len(judged),
            (metrics[f"{split}/accuracy_low"], metrics[f"{split}/accuracy_high"]),
            test_fraction,
        ),
    ]
    return Evaluation(
        name=manifest.name,
        split=split,
        classes=manifest.classes,
        table=table,
        metrics=metrics,
        temperature=temperature,
        positive=positive_,
        verdict=verdict,
        verdicts=[one for one in further if one is not None],
        label_errors=label_errors(table, manifest.classes),
        near_duplicates=twins,
        epochs=epochs,
        valid_activations=valid_activations,
    )


def _predict_all(
    network: Network,
    manifest: Manifest,
    pixels: Pixels,
    views: Tensor,
    batch_size: int,
    device: torch.device,
    split: str,
) -> tuple[pd.DataFrame, npt.NDArray[np.float16]]:
    train, valid, test = (manifest.rows(name) for name in ("train", "valid", "test"))
    judged = manifest.rows(split)
    of_valid, activations = predict_with_activations(network, pixels, valid, batch_size, device, "predicting valid")
    parts = [predict(network, pixels, train, batch_size, device, description="predicting train"), of_valid]
    if len(test):
        parts.append(predict(network, pixels, test, batch_size, device, description="predicting test"))
    plain, rows = np.concatenate(parts), np.concatenate([train, valid, test])
    tta = np.full_like(plain, np.nan)
    tta[np.isin(rows, judged)] = predict(network, pixels, judged, batch_size, device, views, "predicting with TTA")
    return predictions_table(manifest.table.iloc[rows], manifest.classes, plain, tta), activations


def _metrics(
    table: pd.DataFrame, classes: Sequence[str], split: str, temperature: float, seed: int
) -> dict[str, float]:
    def of(name: str) -> pd.DataFrame:
        return table[table["split"] == name]

    metrics = {f"train/plain_{name}": value for name, value in split_metrics(of("train"), classes).items()}
    for name in dict.fromkeys(("valid", split)):
        metrics |= {f"{name}/{key}": value for key, value in all_metrics(of(name), classes).items()}
    judged = of(split)
    metrics |= {f"{split}/{key}": value for key, value in all_metrics(judged, classes, "tta_").items()}
    low, high = accuracy_interval((judged["label"] == judged["predicted"]).to_numpy(), seed)
    metrics |= {f"{split}/accuracy_low": low, f"{split}/accuracy_high": high}
    metrics["overfit/plain_gap"] = metrics["valid/loss"] - metrics["train/plain_loss"]
    probabilities, targets = probabilities_of(judged, classes), targets_of(judged, classes)
    calibrated = apply_temperature(probabilities, temperature)
    of_targets = calibrated[np.arange(len(targets)), targets]
    return metrics | {
        f"{split}/ece": expected_calibration_error(reliability(probabilities, targets)),
        f"{split}/calibrated_ece": expected_calibration_error(reliability(calibrated, targets)),
        f"{split}/calibrated_loss": float(losses(of_targets).mean()),
        "calibration/temperature": temperature,
    }


def _judge_leakage(judged: pd.DataFrame, twins: pd.DataFrame, split: str) -> Verdict | None:
    leaked = twins[(twins["split"] == split) & (twins["twin_split"] == "train")]
    is_right = judged["label"] == judged["predicted"]
    without = is_right[~judged["row"].isin(leaked["row"])]
    return judge_leakage(
        len(leaked),
        int(leaked["same_file"].sum()),
        len(judged),
        split,
        float(is_right.mean()),
        float(without.mean()) if len(without) else math.nan,
    )


def _judge_split_gap(metrics: dict[str, float], valid_pictures: int, split: str, seed: int) -> Verdict | None:
    if split != "test":
        return None
    return judge_split_gap(metrics["valid/accuracy"], valid_pictures, metrics["test/accuracy"], seed)


def _judge_balance(
    judged: pd.DataFrame, classes: Sequence[str], training_counts: pd.Series, accuracy: float, positive: str | None
) -> Verdict | None:
    by_class = class_metrics(judged, classes).set_index("class")
    recalls = by_class["recall"].where(by_class["pictures"] >= FEWEST_JUDGED)
    return judge_balance(training_counts, recalls, accuracy, positive)


def _chance_loss(training_counts: pd.Series) -> float:
    """The loss of guessing by the training split's class shares: their entropy."""
    shares = training_counts / training_counts.sum()
    return float(-sum(share * math.log(share) for share in shares))
