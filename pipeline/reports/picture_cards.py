"""Pictures of an evaluation as cards on which their labels can be mended: wrong, unsure, doubtful, or nearly alike."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.data.decode import Pixels
from pipeline.evaluation.evaluation import Evaluation
from pipeline.evaluation.grad_cam import NO_MAP, Heats
from pipeline.reports.figures import save_figure
from pipeline.reports.page import Mending, Paragraph, Part, Pictures
from pipeline.reports.pictures import (
    CaptionedPictures,
    caption_label_errors,
    caption_pairs,
    caption_predictions,
    confidently_wrong,
    most_uncertain,
    pictures_figure,
    some_right,
    top_losses,
    with_mending,
)

PICTURES_EACH = 8
# Of likely label errors; in training there are more of them, of which the first have Grad-CAM.
MOST_SUSPECTS, MOST_TRAINING_SUSPECTS = 24, 96


def mending_part(evaluation: Evaluation, command: Callable[[Mapping[str, object]], str]) -> Mending:
    """The bar with which the labels on the cards are mended; `command` gives the command that runs the recipe with some
    of its keys changed."""
    table = evaluation.predictions.table
    content = pd.util.hash_pandas_object(table[["hash", "label", "loss"]], index=False).to_numpy().tobytes()
    earlier = [{str(name): str(cell) for name, cell in row.items()} for row in evaluation.corrected.to_dict("records")]
    return Mending(
        classes=evaluation.predictions.classes,
        splits=list(dict.fromkeys(table["split"])),
        earlier=earlier,
        command=command({"data.corrections": "corrections.csv"}),
        key=hashlib.sha256(content).hexdigest()[:16],
    )


def failure_cards(
    evaluation: Evaluation, pixels: Pixels, worst: pd.DataFrame, heats: Heats | None, folder: Path
) -> list[Part]:
    """The most telling pictures of the split evaluated: where the model is wrong, unsure, and right."""
    evaluated = evaluation.predictions.evaluated

    def cards(name: str, heading: str, rows: pd.DataFrame, note: str = "", heats: Heats | None = None) -> Pictures:
        shown = caption_predictions(rows, pixels, heats)
        return _cards(name, heading, shown, rows[["row"]], evaluation, folder, note)

    where = "Beside each picture, Grad-CAM: the brighter, the more it spoke for the class that was predicted."
    wrong = cards("confidently_wrong", "Most confidently wrong", confidently_wrong(evaluated, PICTURES_EACH))
    same = "With two classes, the most confidently wrong are the highest losses above."
    right = some_right(evaluated, PICTURES_EACH, evaluation.seed)
    return [
        cards("top_losses", "Highest losses", worst, NO_MAP if heats is None else where, heats),
        *([Paragraph(same)] if len(evaluation.predictions.classes) == 2 else [wrong]),
        cards("most_uncertain", "Most uncertain", most_uncertain(evaluated, PICTURES_EACH)),
        cards("some_right", "Some that are right, drawn at random", right),
    ]


def explained_label_errors(evaluation: Evaluation) -> pd.DataFrame:
    """The training pictures whose cards have Grad-CAM, as rows of a predictions table: `row`, and the class `predicted`
    by cross-validation."""
    found = evaluation.training_label_errors
    if found is None:
        return evaluation.predictions.table.loc[[], ["row", "predicted"]]
    return found.head(MOST_SUSPECTS)[["row", "suggested"]].rename(columns={"suggested": "predicted"})


def label_error_cards(evaluation: Evaluation, pixels: Pixels, heats: Heats | None, folder: Path) -> list[Part]:
    """The labels that are likely wrong, held out or cross-validated, and the training pictures that the model has not
    come to believe. `heats` are those of `explained_label_errors`, by row."""
    errors = evaluation.label_errors
    words = (
        f"{len(errors)} of the validation and test labels, by confident learning: the model, which never trained on "
        "these pictures, doubts them more than its usual errors explain. All are in label_errors.csv; look before you "
        "change any."
    )
    doubtful = errors.head(MOST_SUSPECTS)
    shown = caption_label_errors(doubtful, pixels)
    trained_on = evaluation.predictions.of("train")
    train = top_losses(trained_on[~trained_on["hash"].isin(evaluation.decided)], PICTURES_EACH)
    trained = "The model has trained on these labels; where it still speaks against one, it is often wrong."
    not_doubted = "Labels that data.corrections keeps or corrects are not doubted again." if evaluation.decided else ""
    return [
        Paragraph(words),
        *([Paragraph(not_doubted)] if not_doubted else []),
        _cards("label_errors", "The most doubtful", shown, doubtful[["row"]], evaluation, folder),
        *_training_label_error_cards(evaluation, pixels, heats, folder),
        _cards(
            "training_losses", "Highest losses of training pictures", caption_predictions(train, pixels),
            train[["row"]], evaluation, folder, trained,
        ),
    ]  # fmt: skip


def _training_label_error_cards(
    evaluation: Evaluation, pixels: Pixels, heats: Heats | None, folder: Path
) -> list[Part]:
    """The training pictures that cross-validation doubts; nothing where there was none."""
    errors = evaluation.training_label_errors
    if errors is None:
        return []
    shown = errors.head(MOST_TRAINING_SUSPECTS)
    note = (
        f"{len(errors)} of the training labels, by cross-validation: heads that were trained on the other pictures "
        "doubt them. All are in training_label_errors.csv"
    )
    note += f"; these are the {len(shown)} most doubtful." if len(shown) < len(errors) else "."
    # The model itself has learned these labels, right or wrong.
    suggested = shown.set_index("row")["suggested"]
    table = evaluation.predictions.table
    judged = table[table["row"].isin(shown["row"])].assign(predicted=lambda rows: rows["row"].map(suggested))
    cards = with_mending(caption_label_errors(shown, pixels, heats), [[row] for row in suggested.index], judged)
    heading = "The most doubtful in training"
    path = save_figure(pictures_figure(cards[:PICTURES_EACH], heading), folder, "training_label_errors")
    return [Pictures(heading, cards, path, note)]


def near_duplicate_cards(evaluation: Evaluation, pixels: Pixels, folder: Path) -> list[Part]:
    """The pictures with a twin in another split."""
    pairs = evaluation.near_duplicates
    words = (
        f"{len(pairs)} held-out pictures have a twin in another split (evaluate.duplicate_similarity sets how alike), "
        f"{int(pairs['same_file'].sum())} of them the same file. All are in near_duplicates.csv. Where a twin was "
        "trained on, the test is easier than new pictures will be."
    )
    alike = pairs.head(MOST_SUSPECTS)
    shown, rows = caption_pairs(alike, pixels), alike[["row", "twin_row"]]
    return [Paragraph(words), _cards("near_duplicates", "The most alike", shown, rows, evaluation, folder)]


def _cards(
    name: str,
    heading: str,
    shown: Sequence[CaptionedPictures],
    rows: pd.DataFrame,
    evaluation: Evaluation,
    folder: Path,
    note: str = "",
) -> Pictures:
    """Cards of pictures; `rows` names those of each card, a picture a column."""
    path = save_figure(pictures_figure(shown, heading), folder, name)
    mendable = with_mending(shown, rows.to_numpy().tolist(), evaluation.predictions.table)
    return Pictures(heading, mendable, path, note)
