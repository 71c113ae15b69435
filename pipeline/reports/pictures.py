"""Which of the predicted pictures to show, and their captions."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.data.decode import Pixels
from pipeline.reports.figures import plot_labels

COLUMNS = 4
CAPTION_LETTERS = 30
LONGEST_LINE = 60
MOST_HEAT = 0.55
# Of the sheet of pictures; a line is one of a caption of 8 points.
PICTURE_INCHES, MARGIN_INCHES, TITLE_INCHES, LINE_INCHES = 2.5, 0.15, 0.4, 0.14
LEAST_WIDTH_INCHES = 5.0  # for the title


@dataclass(frozen=True)
class Mendable:
    """A picture whose label may be corrected where it is shown."""

    hash: str
    path: str
    split: str
    label: str
    predicted: str


@dataclass(frozen=True)
class CaptionedPictures:
    """Pictures (height, width, 1 or 3) that are shown side by side, the lines under them, and those of the pictures
    whose labels may be corrected."""

    pictures: list[Pixels] = field(repr=False)
    caption: list[str]
    mendable: list[Mendable] = field(default_factory=list)


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


def caption_predictions(
    rows: pd.DataFrame, pixels: Pixels, heats: Mapping[int, npt.NDArray[np.floating]] | None = None
) -> list[CaptionedPictures]:
    """The pictures of these rows of a predictions table, each with its true and predicted label, probability, loss and
    path; beside it, if `heats` has its row, the picture with the heat laid over it."""
    shown = []
    for row in rows.to_dict("records"):
        pictures = _with_heat(np.asarray(pixels[row["row"]]), row["row"], heats)
        caption = [*_caption(row), f"loss {row['loss']:.2f}", str(row["path"])]
        shown.append(CaptionedPictures(pictures, caption))
    return shown


def caption_label_errors(
    errors: pd.DataFrame, pixels: Pixels, heats: Mapping[int, npt.NDArray[np.floating]] | None = None
) -> list[CaptionedPictures]:
    """The pictures of a table of `label_errors`, with the label that is doubted and the one suggested; beside each, if
    `heats` has its row, the picture with the heat laid over it."""
    return [
        CaptionedPictures(
            _with_heat(np.asarray(pixels[row["row"]]), row["row"], heats),
            [f"labelled {row['label']} ({row['quality']:.1%})", f"more like {row['suggested']} "
             f"({row['probability']:.1%})", f"{row['split']}: {row['path']}"],
        )
        for row in errors.to_dict("records")
    ]  # fmt: skip


def caption_pairs(pairs: pd.DataFrame, pixels: Pixels) -> list[CaptionedPictures]:
    """The pictures of a table of `near_duplicates`, in pairs."""
    return [
        CaptionedPictures(
            [np.asarray(pixels[row["row"]]), np.asarray(pixels[row["twin_row"]])],
            [
                "the same file" if row["same_file"] else f"similarity {row['similarity']:.3f}",
                *(f"{row[f'{of}split']}, {row[f'{of}label']}: {row[f'{of}path']}" for of in ("", "twin_")),
            ],
        )
        for row in pairs.to_dict("records")
    ]


def with_mending(
    shown: Sequence[CaptionedPictures], rows: Iterable[Sequence[int]], predictions: pd.DataFrame
) -> list[CaptionedPictures]:
    """`shown`, with the pictures that may be corrected: for each of them its `rows`, as the column `row` of the table
    `predictions` has them."""
    facts = predictions[["row", "hash", "path", "split", "label", "predicted"]].set_index("row")
    return [
        replace(one, mendable=[Mendable(*map(str, facts.loc[row])) for row in of_one])
        for one, of_one in zip(shown, rows, strict=True)
    ]


def _caption(row: Mapping[Any, Any]) -> Sequence[str]:
    label, predicted, confidence = row["label"], row["predicted"], row["confidence"]
    if label == predicted:
        return [f"{label}, correct ({confidence:.1%})"]
    return [f"true: {label} ({row[f'probability/{label}']:.1%})", f"predicted: {predicted} ({confidence:.1%})"]


def pictures_figure(shown: Sequence[CaptionedPictures], title: str) -> Figure:
    """Pictures in a grid of at most four columns, each below its caption; those of one `CaptionedPictures` lie side by
    side. All are in one pair of axes, in inches: with a pair for each the layout takes longer than all pictures."""
    wide = max((len(one.pictures) for one in shown), default=1)
    columns = min(COLUMNS // min(wide, 2), max(len(shown), 1))
    captions = [_lines(one.caption, wide) for one in shown]
    starts = range(0, len(shown), columns)
    tops = [TITLE_INCHES]
    for start in starts:
        lines = max(len(caption) for caption in captions[start : start + columns])
        tops.append(tops[-1] + lines * LINE_INCHES + PICTURE_INCHES + MARGIN_INCHES)
    width = max(columns * (wide * PICTURE_INCHES + MARGIN_INCHES) + MARGIN_INCHES, LEAST_WIDTH_INCHES)
    figure = Figure(figsize=(width, tops[-1]))
    axes = figure.add_axes((0, 0, 1, 1))
    for at, (one, caption) in enumerate(zip(shown, captions, strict=True)):
        row, column = divmod(at, columns)
        left = MARGIN_INCHES + column * (wide * PICTURE_INCHES + MARGIN_INCHES)
        _draw(axes, one.pictures, caption, left, tops[row + 1] - MARGIN_INCHES)
    axes.text(width / 2, TITLE_INCHES / 2, title, fontsize=12, ha="center", va="center", parse_math=False)
    axes.set(xlim=(0, width), ylim=(tops[-1], 0))
    axes.axis("off")
    return figure


def _draw(axes: Axes, pictures: Sequence[Pixels], caption: Sequence[str], left: float, bottom: float) -> None:
    """Pictures side by side, below the lines of their caption; `left` and `bottom` are where they begin and end."""
    right, top = left + len(pictures) * PICTURE_INCHES, bottom - PICTURE_INCHES
    beside = np.concatenate([in_colour(picture) for picture in pictures], axis=1)
    axes.imshow(beside, extent=(left, right, bottom, top), aspect="auto")
    middle, above = (left + right) / 2, top - LINE_INCHES / 4
    text = axes.text(middle, above, "\n".join(caption), fontsize=8, ha="center", va="bottom", parse_math=False)
    text.set_linespacing(1.1)


def _with_heat(picture: Pixels, row: int, heats: Mapping[int, npt.NDArray[np.floating]] | None) -> list[Pixels]:
    """The picture, and beside it, if there is any heat for its row, the same with the heat laid over it."""
    heat = None if heats is None else heats.get(row)
    return [picture] if heat is None else [picture, overlay(picture, heat)]


def in_colour(picture: Pixels) -> Pixels:
    """A picture (height, width, 1 or 3) with three channels."""
    return picture.repeat(3, axis=-1) if picture.shape[-1] == 1 else picture


def _lines(caption: Sequence[str], wide: int) -> list[str]:
    """The caption's lines, cut and wrapped to fit, in letters that the font has."""
    lines = []
    for line in caption:
        (drawn,) = plot_labels([line], LONGEST_LINE * wide)
        shown = line.encode("ascii", "backslashreplace").decode() if drawn == "no. 1" else drawn
        lines += textwrap.wrap(shown, CAPTION_LETTERS * wide)
    return lines


def overlay(picture: Pixels, heat: npt.NDArray[np.floating]) -> Pixels:
    """`picture` (size, size, 1 or 3) in grey, with `heat` (size, size) laid over it in colour: the hotter, the more."""
    colour = colormaps["inferno"](heat)[..., :3] * 255
    share = (MOST_HEAT * heat)[..., None]
    blended: Pixels = (picture.mean(axis=-1, keepdims=True) * (1 - share) + colour * share).round().astype(np.uint8)
    return blended
