"""Which pictures to show of all that were predicted, and what to say under each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.decode import Pixels
from pipeline.grad_cam import overlay


@dataclass(frozen=True)
class Shown:
    """Pictures (height, width, 1 or 3) that are shown side by side, and the lines under them."""

    pictures: list[Pixels] = field(repr=False)
    caption: list[str]


def top_losses(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """The `number` rows of a predictions table with the highest losses."""
    return table.nlargest(number, "loss")


def most_uncertain(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """The `number` rows whose likeliest class is the least likely."""
    return table.nsmallest(number, "confidence")


def confidently_wrong(table: pd.DataFrame, number: int) -> pd.DataFrame:
    """The `number` wrong rows where the model is surest of its wrong class."""
    return table[table["label"] != table["predicted"]].nlargest(number, "confidence")


def some_right(table: pd.DataFrame, number: int, seed: int) -> pd.DataFrame:
    """A random sample of `number` right rows, drawn with `seed`."""
    right = table[table["label"] == table["predicted"]]
    return right.sample(min(number, len(right)), random_state=seed)


def show_predictions(
    rows: pd.DataFrame, pixels: Pixels, heats: Mapping[int, npt.NDArray[np.floating]] | None = None
) -> list[Shown]:
    """The pictures of these rows of a predictions table, each with its true and predicted label, probability, loss and
    path; beside it, where `heats` has its row, the picture with that laid over it."""
    shown = []
    for row in rows.to_dict("records"):
        picture = np.asarray(pixels[row["row"]])
        heat = None if heats is None else heats.get(row["row"])
        beside = [] if heat is None else [overlay(picture, heat)]
        caption = [*_verdict(row), f"loss {row['loss']:.2f}", str(row["path"])]
        shown.append(Shown([picture, *beside], caption))
    return shown


def show_label_errors(errors: pd.DataFrame, pixels: Pixels) -> list[Shown]:
    """The pictures of a table of `label_errors`, with the label that is doubted and the one suggested."""
    return [
        Shown(
            [np.asarray(pixels[row["row"]])],
            [f"labelled {row['label']} ({row['quality']:.1%})", f"more like {row['suggested']} "
             f"({row['probability']:.1%})", f"{row['split']}: {row['path']}"],
        )
        for row in errors.to_dict("records")
    ]  # fmt: skip


def show_pairs(pairs: pd.DataFrame, pixels: Pixels) -> list[Shown]:
    """The pictures of a table of `near_duplicates`, two and two."""
    return [
        Shown(
            [np.asarray(pixels[row["row"]]), np.asarray(pixels[row["twin_row"]])],
            [
                "the same file" if row["same_file"] else f"similarity {row['similarity']:.3f}",
                *(f"{row[f'{of}split']}, {row[f'{of}label']}: {row[f'{of}path']}" for of in ("", "twin_")),
            ],
        )
        for row in pairs.to_dict("records")
    ]


def _verdict(row: Mapping[Any, Any]) -> Sequence[str]:
    label, predicted, confidence = row["label"], row["predicted"], row["confidence"]
    if label == predicted:
        return [f"{label}, rightly ({confidence:.1%})"]
    return [f"true: {label} ({row[f'probability/{label}']:.1%})", f"predicted: {predicted} ({confidence:.1%})"]
