import csv

import numpy as np
import pandas as pd
import pytest
from odd_text import NOT_UNICODE, ODD

from pipeline.system.tables import read_table, write_table


@pytest.fixture
def table():
    numbers = np.random.default_rng(0).normal(size=len(ODD)) * 10.0 ** np.arange(-20, len(ODD) - 20)
    numbers[3] = np.nan
    columns = {
        "path": ODD,
        "loss": numbers,
        "row": range(len(ODD)),
        "is_new": [index % 2 == 0 for index in range(len(ODD))],
    }
    return pd.DataFrame(columns)


def test_any_text_and_any_number_comes_back_as_it_was(table, tmp_path):
    write_table(table, tmp_path / "a.csv")
    found = read_table(tmp_path / "a.csv", ["path"])
    assert found["path"].tolist() == ODD
    pd.testing.assert_frame_equal(found, table, check_exact=True)


def test_any_text_may_name_a_column(tmp_path):
    columns = [f"probability/{label}" for label in ODD]
    write_table(pd.DataFrame([np.arange(len(ODD)) / 7], columns=columns), tmp_path / "a.csv")
    found = read_table(tmp_path / "a.csv")
    assert found.columns.tolist() == columns
    assert found.to_numpy().tolist() == [[index / 7 for index in range(len(ODD))]]


def test_other_programs_find_as_many_rows(table, tmp_path):
    write_table(table, tmp_path / "a.csv")
    assert len(pd.read_csv(tmp_path / "a.csv")) == len(ODD)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == ["path", *ODD]


def test_some_columns_can_be_read_alone(table, tmp_path):
    write_table(table, tmp_path / "a.csv")
    found = read_table(tmp_path / "a.csv", ["path"], ["row", "path"])
    pd.testing.assert_frame_equal(found, table[["path", "row"]])


def test_a_column_of_text_without_a_row_and_one_without_text_are_text(tmp_path):
    for rows in ([], ["", ""]):
        write_table(pd.DataFrame({"path": rows, "row": range(len(rows))}), tmp_path / "a.csv")
        assert read_table(tmp_path / "a.csv", ["path"])["path"].tolist() == rows


def test_text_that_is_no_unicode_is_escaped(tmp_path):
    table = pd.DataFrame({"path": pd.Series([NOT_UNICODE, "b"], dtype=object)})
    write_table(table, tmp_path / "a.csv")
    assert read_table(tmp_path / "a.csv", ["path"])["path"].tolist() == ["caf\\udce9.png", "b"]


def test_the_index_is_written_where_it_says_what_the_rows_are(tmp_path):
    counts = pd.DataFrame([[1, 2], [3, 4]], index=["a\rb", "NA"], columns=["a\rb", "NA"])
    write_table(counts, tmp_path / "a.csv", with_index=True)
    found = pd.read_csv(tmp_path / "a.csv", index_col=0, keep_default_na=False)
    pd.testing.assert_frame_equal(found, counts)


def test_the_ending_says_the_kind_of_table(table, tmp_path):
    write_table(table, tmp_path / "a.Parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.Parquet"), table)
