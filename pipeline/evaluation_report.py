"""The report of an evaluation: its tables, figures and pictures as files, and the pages that show them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from pipeline.batches import fetch_pixels
from pipeline.decode import Pixels
from pipeline.evaluation import Evaluation
from pipeline.evaluation_sections import (
    Heats,
    advice_parts,
    calibration_parts,
    failure_parts,
    first_parts,
    label_error_parts,
    map_parts,
    near_duplicate_parts,
    overfitting_parts,
    picture_parts,
    threshold_parts,
    tta_parts,
)
from pipeline.grad_cam import grad_cam
from pipeline.metrics import class_metrics, confusion, most_confused, row_shares
from pipeline.network import Network
from pipeline.picture_groups import (
    top_losses,
)
from pipeline.report import (
    Section,
    html_report,
    markdown_report,
)


def write_evaluation(
    evaluation: Evaluation,
    network: Network,
    pixels: Pixels,
    top_losses_shown: int,
    device: torch.device,
    seed: int,
    command: Callable[[Mapping[str, object]], str],
    folder: Path,
) -> None:
    """Write the predictions, the tables, the figures and the report, as HTML and Markdown, into `folder`.

    `network` is looked at once more, for the Grad-CAM of the `top_losses_shown` pictures; `command` spells how to run
    the recipe with some of its keys changed.
    """
    (folder / "figures").mkdir(exist_ok=True)
    _write_tables(evaluation, folder)
    worst = top_losses(evaluation.judged, top_losses_shown)
    heats = explain(network, pixels, worst, evaluation.classes, device)
    pictures = picture_parts(evaluation, pixels, worst, heats, seed, folder)
    sections = [
        Section("", first_parts(evaluation)),
        Section("What to do next", advice_parts(evaluation, command)),
        Section("Where it fails", [*failure_parts(evaluation, folder), *pictures]),
        Section("Over-fitting", overfitting_parts(evaluation, folder)),
        Section("Calibration", calibration_parts(evaluation, folder)),
        Section("Labels that are likely wrong", label_error_parts(evaluation, pixels, folder)),
        Section("Near-duplicates across splits", near_duplicate_parts(evaluation, pixels, folder)),
        Section("Thresholds", threshold_parts(evaluation, folder)),
        Section("Test-time augmentation", tta_parts(evaluation)),
        Section("A map of the validation pictures", map_parts(evaluation, seed, folder)),
    ]
    title = f"{evaluation.name}: what came out"
    (folder / "report.html").write_text(html_report(title, sections), encoding="utf-8")
    (folder / "report.md").write_text(markdown_report(title, sections, folder), encoding="utf-8")


def explain(
    network: Network, pixels: Pixels, rows: pd.DataFrame, classes: list[str], device: torch.device
) -> Heats | None:
    """By manifest row, what in each picture of these rows of a predictions table spoke for the class predicted; None
    where the backbone has no feature map."""
    fetch = fetch_pixels(pixels, device)
    found: dict[int, npt.NDArray[np.float32]] = {}
    for row, predicted in rows[["row", "predicted"]].itertuples(index=False, name=None):
        target = torch.tensor([classes.index(predicted)], device=device)
        heat = grad_cam(network, fetch(np.array([row], dtype=np.int64)), target)
        if heat is None:
            return None
        found[row] = heat[0]
    return found


def _write_tables(evaluation: Evaluation, folder: Path) -> None:
    counts = confusion(evaluation.judged, evaluation.classes)
    evaluation.table.to_csv(folder / "predictions.csv", index=False)
    counts.to_csv(folder / "confusion.csv")
    row_shares(counts).to_csv(folder / "confusion_shares.csv")
    most_confused(counts).to_csv(folder / "confused_pairs.csv", index=False)
    class_metrics(evaluation.judged, evaluation.classes).to_csv(folder / "classes.csv", index=False)
    evaluation.label_errors.to_csv(folder / "label_errors.csv", index=False)
    evaluation.near_duplicates.to_csv(folder / "near_duplicates.csv", index=False)
    if evaluation.positive is not None:
        evaluation.operating_table().to_csv(folder / "operating_points.csv", index=False)
