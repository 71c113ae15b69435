"""Tables in files. All tables of runs are written and read here, so that any name in a cell comes back as it was."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


def write_table(table: pd.DataFrame, path: Path, with_index: bool = False) -> None:
    """Write `table` as Parquet or CSV, by the ending of `path`. In CSV all text is quoted, since an unquoted carriage
    return would end a row; text that is no Unicode, such as a file's name in another encoding, is escaped."""
    if path.suffix.lower() == ".parquet":
        table.to_parquet(path, index=with_index)
    else:
        table.to_csv(
            path,
            index=with_index,
            quoting=csv.QUOTE_NONNUMERIC,
            lineterminator="\n",
            encoding="utf-8",
            errors="backslashreplace",
        )


def read_table(path: Path, text: Sequence[str] = (), columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The table in a CSV file that `write_table` wrote, or only its `columns`.

    The columns named in `text` are text whatever they hold: "NA", "007" and "1e3" stay, and no cell is missing. In all
    others an empty cell is NaN, and numbers are read to the last digit.
    """
    numbers = [name for name in pd.read_csv(path, nrows=0).columns if name not in text]
    return pd.read_csv(
        path,
        usecols=None if columns is None else list(columns),
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        na_values={name: [""] for name in numbers},
        float_precision="round_trip",
    )
