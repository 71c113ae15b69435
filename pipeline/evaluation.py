"""A network looked at: one table of predictions, and from it figures, a verdict and a report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.decode import Pixels
from pipeline.diagnosis import Verdict, diagnose
from pipeline.figures import confusion_figure, pictures_figure
from pipeline.manifest import Manifest
from pipeline.metrics import class_metrics, confusion, split_metrics
from pipeline.network import Network
from pipeline.predict import predict, predictions_table
from pipeline.report import html_report, markdown_table


@dataclass(frozen=True)
class Evaluation:
    """`table` is the predictions table of all splits; `split` is the one that the model is judged on: test, or
    valid where there is no test split. `metrics` are named as they are logged."""

    name: str
    split: str
    classes: list[str]
    table: pd.DataFrame
    metrics: dict[str, float]
    verdict: Verdict

    @property
    def judged(self) -> pd.DataFrame:
        """The rows of the split that the model is judged on."""
        return self.table[self.table["split"] == self.split]

    def headline(self) -> str:
        """One sentence with the figures that matter most."""
        plain, tta = self.metrics[f"{self.split}/accuracy"], self.metrics[f"{self.split}/tta_accuracy"]
        return (
            f"Accuracy {plain:.4f} on {len(self.judged)} {self.split} pictures (with TTA {tta:.4f}), "
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

    def summary(self) -> str:
        """What the run's page says, in Markdown."""
        tables = markdown_table(self.splits_table()), markdown_table(class_metrics(self.judged, self.classes))
        note = "" if self.split == "test" else "There is no test split: the model is judged on validation pictures.\n\n"
        return f"{self.headline()}\n\n{self.verdict.words}\n\n{note}{tables[0]}\n\n{tables[1]}\n"

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
    network: Network, manifest: Manifest, pixels: Pixels, views: Tensor, batch_size: int, device: torch.device
) -> Evaluation:
    """Predict every picture once as it is, and those of the split judged once more as the mean over `views`."""
    split = "test" if len(manifest.rows("test")) else "valid"
    rows = np.concatenate([manifest.rows(name) for name in ("train", "valid", "test")])
    plain = predict(network, pixels, rows, batch_size, device, description="predicting")
    tta = np.full_like(plain, np.nan)
    is_judged = np.isin(rows, manifest.rows(split))
    tta[is_judged] = predict(network, pixels, rows[is_judged], batch_size, device, views, "predicting with TTA")
    table = predictions_table(manifest.table.iloc[rows], manifest.classes, plain, tta)
    metrics = _metrics(table, manifest.classes, split)
    verdict = diagnose(metrics["train/plain_loss"], metrics["valid/loss"], _chance_loss(manifest))
    return Evaluation(manifest.name, split, manifest.classes, table, metrics, verdict)


def write_evaluation(evaluation: Evaluation, pixels: Pixels, top_losses: int, folder: Path) -> None:
    """Write the predictions, the tables, the figures and the report into `folder`."""
    judged, split = evaluation.judged, evaluation.split
    counts = confusion(judged, evaluation.classes)
    by_class = class_metrics(judged, evaluation.classes)
    evaluation.table.to_csv(folder / "predictions.csv", index=False)
    counts.to_csv(folder / "confusion.csv")
    by_class.to_csv(folder / "classes.csv", index=False)
    figures = folder / "figures"
    figures.mkdir()
    confusion_figure(counts, f"True against predicted, {split} split").savefig(figures / "confusion.png", dpi=120)
    worst = judged.nlargest(top_losses, "loss")
    captions = [
        _caption(*row) for row in worst[["label", "predicted", "confidence"]].itertuples(index=False, name=None)
    ]
    title = f"Highest losses, {split} split"
    pictures_figure([pixels[row] for row in worst["row"]], captions, title).savefig(figures / "top_losses.png", dpi=110)
    report = html_report(
        f"{evaluation.name}: {evaluation.headline()}",
        evaluation.verdict.words,
        {"By split": evaluation.splits_table(), f"By class, {split} split": by_class},
        [("Confusion", figures / "confusion.png"), ("Top losses", figures / "top_losses.png")],
    )
    (folder / "report.html").write_text(report, encoding="utf-8")


def _caption(label: str, predicted: str, confidence: float) -> str:
    what = f"{label}, rightly" if label == predicted else f"{label}, taken for {predicted}"
    return f"{what}\n{confidence:.0%} sure"


def _metrics(table: pd.DataFrame, classes: Sequence[str], split: str) -> dict[str, float]:
    def of(name: str, prefix: str = "") -> dict[str, float]:
        return split_metrics(table[table["split"] == name], classes, prefix)

    metrics = {f"train/plain_{name}": value for name, value in of("train").items()}
    for name in {"valid", split}:
        metrics |= {f"{name}/{key}": value for key, value in of(name).items()}
    metrics |= {f"{split}/{key}": value for key, value in of(split, "tta_").items()}
    metrics["overfit/plain_gap"] = metrics["valid/loss"] - metrics["train/plain_loss"]
    return metrics


def _chance_loss(manifest: Manifest) -> float:
    """The loss of guessing by the training split's class shares: their entropy."""
    shares = manifest.table.loc[manifest.rows("train"), "label"].value_counts(normalize=True)
    return float(-sum(share * math.log(share) for share in shares))
