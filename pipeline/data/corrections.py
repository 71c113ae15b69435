"""Corrects labels of listed pictures by their content, leaves pictures out, and notes whose labels were kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.data.readers.corrections_file import DROP, KEEP, RELABEL, Correction, read_corrections
from pipeline.data.readers.paths import as_written

CORRECTED_COLUMNS = ["hash", "path", "was", "action", "label"]
# The split of pictures that are left out. Their rows stay, so that stores of pixels and activations, which are made
# from all contents in order, are found again.
DROPPED = "dropped"
MOST_NAMED = 3


def apply_corrections(table: pd.DataFrame, corrections: Mapping[str, Correction]) -> pd.DataFrame:
    """Correct the column `label` of `table` (`path`, `label`, `hash`), and add `listed_label`, what it was, by which
    pictures are split so that none of the others changes its split, and `is_dropped`.

    Gives a row for each picture that a correction is for (CORRECTED_COLUMNS), those whose label is kept last.
    """
    table["listed_label"], table["is_dropped"] = table["label"], False
    kept = _kept(table, corrections)
    changing = {content: one for content, one in corrections.items() if one.action != KEEP}
    found = table.loc[table["hash"].isin(list(changing)), ["hash", "path", "label"]]
    given = [changing[content] for content in found["hash"]]
    # Copies in several classes have one label now, and are split as one picture.
    listed = found.groupby("hash")["label"].transform("first")
    labels = [one.label if one.action == RELABEL else was for one, was in zip(given, listed, strict=True)]
    rows = found.index
    table.loc[rows, "listed_label"], table.loc[rows, "label"] = listed, labels
    table.loc[rows, "is_dropped"] = [one.action == DROP for one in given]
    corrected = found.rename(columns={"label": "was"}).reset_index(drop=True)
    corrected["action"], corrected["label"] = [one.action for one in given], [one.label for one in given]
    return pd.concat([corrected[CORRECTED_COLUMNS], kept], ignore_index=True)


def decided_pictures(corrected: pd.DataFrame, table: pd.DataFrame, classes: Sequence[str], source: str) -> pd.DataFrame:
    """The pictures whose labels a person has decided on (CORRECTED_COLUMNS): of the manifest's `corrected` those that
    were changed, and those of its `table` whose labels the file `source` of data.corrections keeps now.

    A manifest is reused whatever is kept, so that its own kept rows, which count where `source` is no longer there, may
    be older.
    """
    if source and not as_written(Path(source)).is_file():
        return corrected
    changed = corrected[corrected["action"] != KEEP]
    return pd.concat([changed, _kept(table, read_corrections(source, classes))], ignore_index=True)


def count_corrections(corrected: pd.DataFrame) -> str:
    """How many labels were corrected, how many pictures dropped, and how many labels kept, in words; empty if none."""
    if not len(corrected):
        return ""
    relabelled, dropped, kept = (int((corrected["action"] == action).sum()) for action in (RELABEL, DROP, KEEP))
    words = f"Pictures relabelled by data.corrections: {relabelled}, dropped: {dropped}"
    return f"{words}, kept: {kept}" if kept else words


def note_unused(corrections: Mapping[str, Correction], corrected: pd.DataFrame) -> list[str]:
    """A sentence on the corrections that are for none of the pictures, if there are any."""
    used = set(corrected["hash"])
    paths = [one.path or content for content, one in corrections.items() if content not in used]
    if not paths:
        return []
    some = ", ".join(paths[:MOST_NAMED]) + (", …" if len(paths) > MOST_NAMED else "")
    are_kept = any(one.action == KEEP for content, one in corrections.items() if content not in used)
    return [
        f"{len(paths)} of {len(corrections)} corrections in data.corrections are for pictures that are no longer there"
        f"{' or keep a label that is another now' if are_kept else ''} ({some}), and are ignored."
    ]


def _kept(table: pd.DataFrame, corrections: Mapping[str, Correction]) -> pd.DataFrame:
    """The pictures of `table` that still have the label that a correction keeps (CORRECTED_COLUMNS)."""
    labels = {content: one.label for content, one in corrections.items() if one.action == KEEP}
    found = table.loc[table["label"] == table["hash"].map(labels), ["hash", "path", "label"]]
    return found.assign(was=found["label"], action=KEEP)[CORRECTED_COLUMNS].reset_index(drop=True)
