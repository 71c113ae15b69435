"""Corrects labels of listed pictures by their content, or leaves pictures out."""

from collections.abc import Mapping

import pandas as pd

from pipeline.data.readers.corrections_file import Correction

CORRECTED_COLUMNS = ["hash", "path", "was", "action", "label"]
# The split of pictures that are left out. Their rows stay, so that stores of pixels and activations, which are made
# from all contents in order, are found again.
DROPPED = "dropped"
MOST_NAMED = 3


def apply_corrections(table: pd.DataFrame, corrections: Mapping[str, Correction]) -> pd.DataFrame:
    """Correct the column `label` of `table` (`path`, `label`, `hash`), and add `listed_label`, what it was, by which
    pictures are split so that none of the others changes its split, and `is_dropped`.

    Gives a row for each picture that a correction is for (CORRECTED_COLUMNS).
    """
    table["listed_label"], table["is_dropped"] = table["label"], False
    found = table.loc[table["hash"].isin(list(corrections)), ["hash", "path", "label"]]
    given = [corrections[content] for content in found["hash"]]
    # Copies in several classes have one label now, and are split as one picture.
    listed = found.groupby("hash")["label"].transform("first")
    labels = [was if one.label is None else one.label for one, was in zip(given, listed, strict=True)]
    rows = found.index
    table.loc[rows, "listed_label"], table.loc[rows, "label"] = listed, labels
    table.loc[rows, "is_dropped"] = [one.label is None for one in given]
    corrected = found.rename(columns={"label": "was"}).reset_index(drop=True)
    corrected["action"], corrected["label"] = [one.action for one in given], [one.label or "" for one in given]
    return corrected[CORRECTED_COLUMNS]


def count_corrections(corrected: pd.DataFrame) -> str:
    """How many labels were corrected and how many pictures dropped, in words; empty if none were."""
    dropped = int((corrected["action"] == "drop").sum()) if len(corrected) else 0
    if not len(corrected):
        return ""
    return f"Pictures relabelled by data.corrections: {len(corrected) - dropped}, dropped: {dropped}"


def note_unused(corrections: Mapping[str, Correction], corrected: pd.DataFrame) -> list[str]:
    """A sentence on the corrections that are for none of the pictures, if there are any."""
    used = set(corrected["hash"])
    paths = [one.path or content for content, one in corrections.items() if content not in used]
    if not paths:
        return []
    some = ", ".join(paths[:MOST_NAMED]) + (", …" if len(paths) > MOST_NAMED else "")
    return [
        f"{len(paths)} of {len(corrections)} corrections in data.corrections are for pictures that are no longer there "
        f"({some}), and are ignored."
    ]
