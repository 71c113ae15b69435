"""The report of an evaluation: its tables, figures and pictures as files, and the pages that show them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch

from pipeline.data.corrections import count_corrections
from pipeline.data.decode import Pixels
from pipeline.evaluation.embedding import embedding_map
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.grad_cam import explain_predictions
from pipeline.evaluation.metrics import row_shares
from pipeline.models.network import Network
from pipeline.reports.evaluation_figures import (
    class_curves_figure,
    confusion_figure,
    embedding_figure,
    operating_figure,
    reliability_figure,
)
from pipeline.reports.figures import plot_labels, save_figure
from pipeline.reports.page import (
    Advice,
    Figures,
    KeyFigures,
    Paragraph,
    Part,
    Section,
    html_report,
    markdown_report,
    markdown_table,
)
from pipeline.reports.picture_cards import (
    explained_label_errors,
    failure_cards,
    label_error_cards,
    mending_part,
    near_duplicate_cards,
)
from pipeline.reports.pictures import top_losses
from pipeline.reports.training_figures import learning_figure
from pipeline.system.tables import write_table

MOST_ROWS = 15
FEW_CLASSES = 8
WORST_CLASSES = 8
GOOD = "good"
NO_TEST_SPLIT = "There is no test split: the model is evaluated on validation pictures."


def write_evaluation(
    evaluation: Evaluation,
    network: Network,
    pixels: Pixels,
    top_losses_shown: int,
    command: Callable[[Mapping[str, object]], str],
    device: torch.device,
    folder: Path,
) -> None:
    """Write the predictions, the tables, the figures and the report, as HTML and Markdown, into `folder`.

    `network` is needed for the Grad-CAM of the `top_losses_shown` pictures and of doubtful labels; `command` gives the
    command that runs the recipe with some of its keys changed.
    """
    (folder / "figures").mkdir(exist_ok=True)
    _write_tables(evaluation, folder)
    worst = top_losses(evaluation.predictions.evaluated, top_losses_shown)
    explained = pd.concat([worst[["row", "predicted"]], explained_label_errors(evaluation)])
    heats = explain_predictions(network, pixels, explained, evaluation.predictions.classes, device)
    pictures = failure_cards(evaluation, pixels, worst, heats, folder)
    sections = [
        Section("", [*first_parts(evaluation), mending_part(evaluation, command)]),
        Section("What to do next", advice_parts(evaluation, command)),
        Section("Where it fails", [*failure_parts(evaluation, folder), *pictures]),
        Section("Over-fitting", overfitting_parts(evaluation, folder)),
        *([Section("The networks", ensemble_parts(evaluation))] if evaluation.ensemble else []),
        Section("Calibration", calibration_parts(evaluation, folder)),
        Section("Labels that are likely wrong", label_error_cards(evaluation, pixels, heats, folder)),
        Section("Near-duplicates across splits", near_duplicate_cards(evaluation, pixels, folder)),
        Section("Thresholds", threshold_parts(evaluation, folder)),
        Section("Test-time augmentation", tta_parts(evaluation)),
        Section("A map of the validation pictures", map_parts(evaluation, folder)),
    ]
    title = f"Evaluation of {evaluation.name}"
    (folder / "report.html").write_text(html_report(title, sections), encoding="utf-8")
    (folder / "report.md").write_text(markdown_report(title, sections, folder), encoding="utf-8")


def summarize(evaluation: Evaluation) -> str:
    """The description of the run, in Markdown: the verdict on over-fitting first, then the headline, every further
    verdict, and short tables."""
    by_class = evaluation.predictions.by_class
    worst = by_class.nsmallest(WORST_CLASSES, "f1")
    note = "" if evaluation.split == "test" else f"{NO_TEST_SPLIT}\n\n"
    ensemble = f"{evaluation.ensemble}\n\n" if evaluation.ensemble else ""
    verdict, *further = (f"**{one.name}**: {one.words}" for one in (evaluation.verdict, *evaluation.verdicts))
    verdicts = "".join(f"- {one}\n" for one in further)
    in_training = evaluation.training_label_errors
    of_training = "" if in_training is None else f", {len(in_training)} in training (training_label_errors.csv)"
    found = (
        f"{len(evaluation.label_errors)} labels are likely wrong (label_errors.csv){of_training}, and "
        f"{len(evaluation.near_duplicates)} pictures have a near-duplicate in another split (near_duplicates.csv). "
        "All figures are in report.html."
    )
    which = f"The {WORST_CLASSES} classes with the lowest F1:\n\n" if len(by_class) > WORST_CLASSES else ""
    tables = f"{markdown_table(evaluation.splits_table)}\n\n{which}{markdown_table(worst)}"
    corrected = count_corrections(evaluation.corrected)
    found += f" {corrected}." if corrected else ""
    return f"{verdict}\n\n{evaluation.headline()}\n\n{ensemble}{verdicts}\n{note}{found}\n\n{tables}\n"


def _write_tables(evaluation: Evaluation, folder: Path) -> None:
    predictions = evaluation.predictions
    write_table(predictions.table, folder / "predictions.csv")
    write_table(predictions.confusion, folder / "confusion.csv", with_index=True)
    write_table(row_shares(predictions.confusion), folder / "confusion_shares.csv", with_index=True)
    write_table(predictions.confused_pairs, folder / "confused_pairs.csv")
    write_table(predictions.by_class, folder / "classes.csv")
    write_table(evaluation.label_errors, folder / "label_errors.csv")
    if evaluation.training_label_errors is not None:
        write_table(evaluation.training_label_errors, folder / "training_label_errors.csv")
    write_table(evaluation.near_duplicates, folder / "near_duplicates.csv")
    if predictions.positive is not None:
        write_table(predictions.operating_points, folder / "operating_points.csv")


def first_parts(evaluation: Evaluation) -> list[Part]:
    """The top of the page: how many pictures are right, and the numbers that matter most."""
    of = {name.removeprefix(f"{evaluation.split}/"): value for name, value in evaluation.metrics.items()}
    numbers = [
        (f"{of['accuracy']:.1%}", f"accuracy on {len(evaluation.predictions.evaluated)} {evaluation.split} pictures"),
        (f"{of['accuracy_low']:.1%} to {of['accuracy_high']:.1%}", "95% interval of the accuracy (bootstrap)"),
        (f"{of['macro_f1']:.3f}", "macro F1"),
        (f"{of['balanced_accuracy']:.1%}", "balanced accuracy"),
        *([(f"{of['roc_auc']:.3f}", "ROC-AUC")] if "roc_auc" in of else []),
        (f"{of['loss']:.3f}", "log-loss"),
    ]
    note = "" if evaluation.split == "test" else NO_TEST_SPLIT
    evaluated = evaluation.predictions.evaluated
    right = int((evaluated["label"] == evaluated["predicted"]).sum())
    of_all = f"{right:,} of {len(evaluated):,} {evaluation.split} pictures"
    words = f"The model is right on {of_all}, which it was not trained on."
    return [Paragraph(words), KeyFigures(numbers), Paragraph(note)]


def advice_parts(evaluation: Evaluation, command: Callable[[Mapping[str, object]], str]) -> list[Part]:
    """Every verdict with the command to try next, and good news last."""
    verdict = evaluation.verdict
    parts: list[Part] = [
        Advice(one.name, one.words, command(one.changes) if one.changes else "")
        for one in (verdict, *evaluation.verdicts)
        if one.name != GOOD
    ]
    return [*parts, Advice("no over-fitting", verdict.words, is_good=True)] if verdict.name == GOOD else parts


def first_advice(evaluation: Evaluation, command: Callable[[Mapping[str, object]], str]) -> str:
    """What is most wrong, and the command to try next, in one line; empty if nothing is."""
    first = advice_parts(evaluation, command)[:1]
    found = [one for one in first if isinstance(one, Advice) and not one.is_good]
    return "".join(f"{one.words} Try: {one.command}" if one.command else one.words for one in found)


def failure_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """The classes, the most confused pairs and the confusion matrix, as counts and as shares."""
    predictions = evaluation.predictions
    split, classes, counts, pairs = (
        evaluation.split,
        predictions.classes,
        predictions.confusion,
        predictions.confused_pairs,
    )
    names = {"f1": "F1", "roc_auc": "ROC-AUC", "average_precision": "average precision"}
    by_class = predictions.by_class.rename(columns=names)
    labels = plot_labels(classes)
    if labels != classes:
        shown = ["" if one == label else one for one, label in zip(labels, classes, strict=True)]
        by_class.insert(1, "in figures", shown)
    paths = [
        save_figure(confusion_figure(counts, f"Counts, {split} split"), folder, "confusion"),
        save_figure(
            confusion_figure(counts, f"Shares of each true class, {split} split", True), folder, "confusion_shares"
        ),
    ]
    alt = "True against predicted classes"
    matrices = [Figures(paths, alt)] if len(classes) <= FEW_CLASSES else [Figures([path], alt) for path in paths]
    return [
        Paragraph("A row per class, the lowest F1 first.", "By class"),
        by_class.sort_values("F1", kind="stable"),
        Paragraph("" if len(pairs) else "None.", "Most confused pairs"),
        *([pairs.head(MOST_ROWS)] if len(pairs) else []),
        Paragraph("", "Confusion matrix"),
        *matrices,
    ]


def overfitting_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """The splits side by side, and the curves of all training stages."""
    parts: list[Part] = [
        Paragraph(
            "All losses here are measured on plain pictures with the final network. A training loss far below the "
            "validation loss is over-fitting."
        ),
        evaluation.splits_table,
    ]
    if len(evaluation.epochs):
        figure = learning_figure(evaluation.epochs)
        parts.append(
            Figures([save_figure(figure, folder, "learning")], "Losses and accuracy by epoch, over all stages")
        )
    return parts


def ensemble_parts(evaluation: Evaluation) -> list[Part]:
    """How each network whose probabilities are averaged validates, and how their mean does."""
    mean: dict[str, object] = {"network": f"mean of {len(evaluation.members)}"}
    mean |= {name: evaluation.metrics[f"valid/{name}"] for name in ("accuracy", "loss")}
    table = pd.concat([evaluation.members, pd.DataFrame([mean])], ignore_index=True)
    of_first = (
        "Grad-CAM, the curves of training and the map of the pictures are of the first network, all else of the mean."
    )
    return [Paragraph(f"{evaluation.ensemble} {of_first}"), table]


def calibration_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """The effect of the temperature, and the reliability diagram before and after it."""
    predictions = evaluation.predictions
    split = evaluation.split
    of = {name: evaluation.metrics[f"{split}/{name}"] for name in ("ece", "calibrated_ece", "loss", "calibrated_loss")}
    confidence = "over-confident" if predictions.temperature > 1 else "under-confident"
    words = predictions.uncalibrated or (
        f"Temperature {predictions.temperature:.3f}, fitted on the validation split: the model was {confidence}. On "
        f"the {split} split it takes the expected calibration error from {of['ece']:.4f} to "
        f"{of['calibrated_ece']:.4f}, and the log-loss from {of['loss']:.4f} to "
        f"{of['calibrated_loss']:.4f}. It changes no prediction."
    )
    is_flattered = split == "valid" and not predictions.uncalibrated
    note = " These are the same pictures, so that the gain looks larger than it is." if is_flattered else ""
    calibrated = None if predictions.uncalibrated else (predictions.calibrated_reliability, of["calibrated_ece"])
    title = f"Reliability: accuracy against confidence, {split} split"
    figure = reliability_figure((predictions.reliability, of["ece"]), calibrated, title)
    return [Paragraph(words + note), Figures([save_figure(figure, folder, "reliability")], "Reliability diagram")]


def threshold_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """ROC and precision-recall curves, and the operating points of the positive class."""
    predictions = evaluation.predictions
    classes, positive, shown = predictions.classes, predictions.positive, predictions.class_curves
    if len(classes) == 2 and positive is not None:
        shown = [one for one in shown if one.label == positive]
    if not shown:
        return [Paragraph(f"The {evaluation.split} split holds one class alone, so that no curve is defined.")]
    title = f"Each class against the rest, {evaluation.split} split"
    path = save_figure(class_curves_figure(shown, classes, title), folder, "curves")
    parts: list[Part] = [Figures([path], "ROC and precision-recall curves")]
    if positive is None:
        ask = "Name a class in evaluate.positive_class, and the precision and recall of each threshold are listed here."
        return [*parts, Paragraph(ask)]
    words = (
        f"Precision and recall of flagging as {positive} every picture with at least this calibrated probability of "
        f"it, on the {evaluation.split} split."
    )
    figure = operating_figure(predictions.operating_points, positive, classes)
    path = save_figure(figure, folder, "operating_points")
    drawn = Figures([path], "Precision and recall by threshold")
    return [*parts, Paragraph(words, "Operating points"), drawn, predictions.operating_points]


def tta_parts(evaluation: Evaluation) -> list[Part]:
    """Every metric with and without test-time augmentation."""
    words = (
        "The mean of the probabilities over the flips and crops that augment.flip and augment.crop allow "
        "(evaluate.tta_views of them), beside the prediction on the plain picture."
    )
    return [Paragraph(words), evaluation.tta_table]


def map_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """The validation pictures on the two directions in which their activations differ most."""
    valid = evaluation.predictions.of("valid")
    positions, explained = embedding_map(evaluation.valid_activations, evaluation.seed)
    wrong = (valid["label"] != valid["predicted"]).to_numpy()
    title = f"{len(valid)} validation pictures, {explained:.0%} of the variance of what the head sees"
    figure = embedding_figure(positions, valid["label"].tolist(), wrong, evaluation.predictions.classes, title)
    words = "Pictures that lie together look alike to the model. Classes that overlap here are those it mixes up."
    return [
        Paragraph(words),
        Figures([save_figure(figure, folder, "embedding")], "Principal components of the activations"),
    ]
