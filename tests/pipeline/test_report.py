import base64
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pipeline.report import html_report, markdown_table

NASTY = "<b>a&b</b>"


@pytest.fixture
def page(tmp_path) -> str:
    Figure(figsize=(1, 1)).savefig(tmp_path / "dot.png", dpi=10)
    tables = {"By <class>": pd.DataFrame({"class": [NASTY, "plain"], "f1": [0.123456, 1.0], "pictures": [3, 1200]})}
    return html_report(f"Set {NASTY}", f"Too {NASTY}", tables, [("A & B", tmp_path / "dot.png")])


def test_names_cannot_break_out_into_html(page):
    assert "<b>" not in page
    assert page.count("&lt;b&gt;a&amp;b&lt;/b&gt;") == 4, "title, heading, verdict, table"
    assert "By &lt;class&gt;" in page
    assert 'alt="A &amp; B"' in page


def test_the_page_refers_to_nothing_outside_it(page):
    assert not re.search(r"https?:|//|@import|<script|<link", re.sub(r"base64,[\w+/=]+", "", page))


def test_the_image_in_the_page_is_the_file(page, tmp_path):
    (encoded,) = re.findall(r'src="data:image/png;base64,([\w+/=]+)"', page)
    assert base64.b64decode(encoded) == (tmp_path / "dot.png").read_bytes()


def test_the_verdict_comes_before_the_tables_and_these_before_the_figures(page):
    assert page.index("Too &lt;") < page.index("By &lt;class") < page.index("A &amp; B")


def test_floats_have_four_digits_and_counts_stay_whole(page):
    assert "<td>0.1235</td>" in page
    assert "<td>1.0000</td>" in page
    assert "<td>1200</td>" in page


def test_a_markdown_table_has_a_line_for_each_row():
    table = pd.DataFrame({"class": ["a|b", "c"], "f1": np.array([0.123456, 1]), "pictures": [3, 4]})
    assert markdown_table(table).split("\n") == [
        "| class | f1 | pictures |",
        "| --- | --- | --- |",
        "| a\\|b | 0.1235 | 3 |",
        "| c | 1.0000 | 4 |",
    ]


def test_a_table_with_no_rows_still_has_its_heading():
    assert markdown_table(pd.DataFrame({"a": [], "b": []})) == "| a | b |\n| --- | --- |"
