"""The sections of an evaluation's report; each function saves its figures below `folder` and gives what to show."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from pipeline.calibration import apply_temperature, reliability
from pipeline.curves import class_curves
from pipeline.decode import Pixels
from pipeline.drawn_names import drawn_names
from pipeline.embedding import embedding_map
from pipeline.evaluation import Evaluation
from pipeline.figures import learning_figure
from pipeline.figures_evaluation import (
    confusion_figure,
    curves_figure,
    embedding_figure,
    operating_figure,
    reliability_figure,
)
from pipeline.figures_pictures import pictures_figure
from pipeline.grad_cam import NO_MAP
from pipeline.metrics import class_metrics, confusion, most_confused, probabilities_of, targets_of
from pipeline.picture_groups import (
    Shown,
    confidently_wrong,
    most_uncertain,
    show_label_errors,
    show_pairs,
    show_predictions,
    some_right,
)
from pipeline.report import (
    Advice,
    Figures,
    Numbers,
    Part,
    Pictures,
    Words,
)

PICTURES_EACH = 8
MOST_SUSPECTS = 24
MOST_ROWS = 15
FEW_CLASSES = 8
DPI = 110
GOOD = "good"

Heats = Mapping[int, npt.NDArray[np.float32]]


def first_parts(evaluation: Evaluation) -> list[Part]:
    """What is read first: the headline and the numbers that matter most."""
    of = {name.removeprefix(f"{evaluation.split}/"): value for name, value in evaluation.metrics.items()}
    numbers = [
        (f"{of['accuracy']:.1%}", f"accuracy on {len(evaluation.judged)} {evaluation.split} pictures"),
        (f"{of['accuracy_low']:.1%} to {of['accuracy_high']:.1%}", "95% interval of the accuracy (bootstrap)"),
        (f"{of['macro_f1']:.3f}", "macro F1"),
        (f"{of['balanced_accuracy']:.1%}", "balanced accuracy"),
        *([(f"{of['roc_auc']:.3f}", "ROC-AUC")] if "roc_auc" in of else []),
        (f"{of['loss']:.3f}", "log-loss"),
    ]
    note = "" if evaluation.split == "test" else "There is no test split: the model is judged on validation pictures."
    return [Words(evaluation.headline()), Numbers(numbers), Words(note)]


def advice_parts(evaluation: Evaluation, command: Callable[[Mapping[str, object]], str]) -> list[Part]:
    """Every verdict with the command to try next, and what is in order last."""
    verdict = evaluation.verdict
    parts: list[Part] = [
        Advice(one.name, one.words, command(one.changes) if one.changes else "")
        for one in (verdict, *evaluation.verdicts)
        if one.name != GOOD
    ]
    return [*parts, Advice("no over-fitting", verdict.words, is_good=True)] if verdict.name == GOOD else parts


def failure_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """The classes, the most confused pairs and the confusion matrix, as counts and as shares."""
    judged, classes, split = evaluation.judged, evaluation.classes, evaluation.split
    counts, by_class = confusion(judged, classes), class_metrics(judged, classes)
    by_class = by_class.rename(columns={"f1": "F1", "roc_auc": "ROC-AUC", "average_precision": "average precision"})
    drawn = drawn_names(classes)
    if drawn != classes:
        shown = ["" if one == label else one for one, label in zip(drawn, classes, strict=True)]
        by_class.insert(1, "in figures", shown)
    paths = [
        _save(confusion_figure(counts, f"Counts, {split} split"), folder, "confusion"),
        _save(confusion_figure(counts, f"Shares of each true class, {split} split", True), folder, "confusion_shares"),
    ]
    pairs = most_confused(counts)
    alt = "True against predicted classes"
    matrices = [Figures(paths, alt)] if len(classes) <= FEW_CLASSES else [Figures([path], alt) for path in paths]
    return [
        Words("A row per class, the lowest F1 first.", "By class"),
        by_class.sort_values("F1", kind="stable"),
        Words("" if len(pairs) else "None.", "Most confused pairs"),
        *([pairs.head(MOST_ROWS)] if len(pairs) else []),
        Words("", "Confusion matrix"),
        *matrices,
    ]


def picture_parts(
    evaluation: Evaluation, pixels: Pixels, worst: pd.DataFrame, heats: Heats | None, seed: int, folder: Path
) -> list[Part]:
    """The pictures of the split judged that say most: where it is wrong, unsure, and right."""
    judged = evaluation.judged

    def group(name: str, heading: str, rows: pd.DataFrame) -> Pictures:
        return _group(name, heading, show_predictions(rows, pixels), folder)

    where = "Beside each picture, Grad-CAM: the brighter, the more it spoke for the class that was predicted."
    with_heat = show_predictions(worst, pixels, heats)
    wrong = group("confidently_wrong", "Most confidently wrong", confidently_wrong(judged, PICTURES_EACH))
    same = "With two classes, the most confidently wrong are the highest losses above."
    return [
        _group("top_losses", "Highest losses", with_heat, folder, NO_MAP if heats is None else where),
        *([Words(same)] if len(evaluation.classes) == 2 else [wrong]),
        group("most_uncertain", "Most uncertain", most_uncertain(judged, PICTURES_EACH)),
        group("some_right", "Some that are right, drawn at random", some_right(judged, PICTURES_EACH, seed)),
    ]


def overfitting_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """The splits side by side, and the curves of all training stages."""
    parts: list[Part] = [
        Words(
            "All losses here are measured on plain pictures, with the network as it came out. Far below on train what "
            "it is on valid is over-fitting."
        ),
        evaluation.splits_table(),
    ]
    if len(evaluation.epochs):
        figure = learning_figure(evaluation.epochs)
        parts.append(Figures([_save(figure, folder, "learning")], "Losses and accuracy by epoch, over all stages"))
    return parts


def calibration_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """What the temperature does, and the reliability diagram before and after it."""
    targets = targets_of(evaluation.judged, evaluation.classes)
    before = probabilities_of(evaluation.judged, evaluation.classes)
    after = apply_temperature(before, evaluation.temperature)
    split = evaluation.split
    of = {name: evaluation.metrics[f"{split}/{name}"] for name in ("ece", "calibrated_ece", "loss", "calibrated_loss")}
    sure = "too sure" if evaluation.temperature > 1 else "not sure enough"
    words = (
        f"Temperature {evaluation.temperature:.3f}, fitted on the validation split: the model was {sure}. On the "
        f"{evaluation.split} split it takes the expected calibration error from {of['ece']:.4f} to "
        f"{of['calibrated_ece']:.4f}, and the log-loss from {of['loss']:.4f} to "
        f"{of['calibrated_loss']:.4f}. It changes no prediction."
    )
    note = " These are the same pictures, so that the gain looks larger than it is." if split == "valid" else ""
    figure = reliability_figure(
        reliability(before, targets), reliability(after, targets), (of["ece"], of["calibrated_ece"]),
        f"Right as often as sure? {evaluation.split} split",
    )  # fmt: skip
    return [Words(words + note), Figures([_save(figure, folder, "reliability")], "Reliability diagram")]


def threshold_parts(evaluation: Evaluation, folder: Path) -> list[Part]:
    """ROC and precision-recall curves, and the operating points of the positive class."""
    judged, classes = evaluation.judged, evaluation.classes
    curves = class_curves(targets_of(judged, classes), probabilities_of(judged, classes), classes)
    shown = curves
    if len(classes) == 2 and evaluation.positive is not None:
        shown = [one for one in curves if one.label == evaluation.positive]
    if not shown:
        return [Words(f"The {evaluation.split} split holds one class alone, so that there is nothing to tell apart.")]
    title = f"Each class against the rest, {evaluation.split} split"
    path = _save(curves_figure(shown, classes, title), folder, "curves")
    parts: list[Part] = [Figures([path], "ROC and precision-recall curves")]
    if evaluation.positive is None:
        ask = "Name a class in evaluate.positive_class, and the precision and recall of each threshold are listed here."
        return [*parts, Words(ask)]
    points = evaluation.operating_table()
    words = (
        f"What comes of flagging as {evaluation.positive} every picture with at least this calibrated probability of "
        f"it, on the {evaluation.split} split."
    )
    figure = operating_figure(points, evaluation.positive, classes)
    path = _save(figure, folder, "operating_points")
    return [*parts, Words(words, "Operating points"), Figures([path], "Precision and recall by threshold"), points]


def tta_parts(evaluation: Evaluation) -> list[Part]:
    """Every metric with and without test-time augmentation."""
    words = (
        "The mean of the probabilities over the flips and crops that augment.flip and augment.crop allow "
        "(evaluate.tta_views of them), beside what the model says of the plain picture."
    )
    return [Words(words), evaluation.tta_table()]


def label_error_parts(evaluation: Evaluation, pixels: Pixels, folder: Path) -> list[Part]:
    """The labels that are likely wrong."""
    errors = evaluation.label_errors
    words = (
        f"{len(errors)} of the validation and test labels, by confident learning: the model, which never trained on "
        "these pictures, doubts them more than its usual errors explain. All are in label_errors.csv; look before you "
        "change any."
    )
    shown = show_label_errors(errors.head(MOST_SUSPECTS), pixels)
    return [Words(words), _group("label_errors", "The most doubtful", shown, folder)]


def near_duplicate_parts(evaluation: Evaluation, pixels: Pixels, folder: Path) -> list[Part]:
    """The pictures with a twin in another split."""
    pairs = evaluation.near_duplicates
    words = (
        f"{len(pairs)} held-out pictures have a twin in another split (evaluate.duplicate_similarity sets how alike), "
        f"{int(pairs['same_file'].sum())} of them the same file. All are in near_duplicates.csv. Where a twin was "
        "trained on, the test is easier than new pictures will be."
    )
    shown = show_pairs(pairs.head(MOST_SUSPECTS), pixels)
    return [Words(words), _group("near_duplicates", "The most alike", shown, folder)]


def map_parts(evaluation: Evaluation, seed: int, folder: Path) -> list[Part]:
    """The validation pictures on the two directions in which their activations differ most."""
    valid = evaluation.table[evaluation.table["split"] == "valid"]
    places, explained = embedding_map(evaluation.valid_activations, seed)
    wrong = (valid["label"] != valid["predicted"]).to_numpy()
    title = f"{len(valid)} validation pictures, {explained:.0%} of the variance of what the head sees"
    figure = embedding_figure(places, valid["label"].tolist(), wrong, evaluation.classes, title)
    words = "Pictures that lie together look alike to the model. Classes that overlap here are those it mixes up."
    return [Words(words), Figures([_save(figure, folder, "embedding")], "Principal components of the activations")]


def _group(name: str, heading: str, shown: list[Shown], folder: Path, note: str = "") -> Pictures:
    return Pictures(heading, shown, _save(pictures_figure(shown, heading), folder, name), note)


def _save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / "figures" / f"{name}.png"
    figure.savefig(path, dpi=DPI)
    return path
