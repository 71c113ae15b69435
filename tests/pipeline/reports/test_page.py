import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.reports.page import (
    Advice,
    Figures,
    Html,
    KeyFigures,
    Mending,
    Paragraph,
    Pictures,
    Section,
    html_report,
    markdown_report,
    markdown_table,
)
from pipeline.reports.pictures import CaptionedPictures, Mendable

NASTY = "<b>a&b</b>"
PICTURE = np.full((300, 300, 1), 77, np.uint8)


@pytest.fixture
def sections(tmp_path: Path) -> list[Section]:
    """A report with one of every part, all with a nasty name in it."""
    (tmp_path / "figures").mkdir()
    dot = tmp_path / "figures" / "dot.png"
    Figure(figsize=(1, 1)).savefig(dot, dpi=10)
    table = pd.DataFrame({"class": [NASTY, "plain"], "f1": [0.123456, np.nan], "pictures": [3, 1200]})
    return [
        Section("", [Paragraph(f"First {NASTY}"), KeyFigures([("84.3%", f"accuracy of {NASTY}")])]),
        Section("A & B", [Advice(f"bad {NASTY}", f"Too {NASTY}", f"run {NASTY}"),
                          Advice("well", "Good.", is_good=True)]),
        Section("C", [table, Figures([dot], f"alt {NASTY}"), Figures([dot, dot], "two")]),
        Section("D", [Pictures(f"of {NASTY}", [CaptionedPictures([PICTURE], [f"is {NASTY}", "a.png"])], dot, "A note."),
                      Pictures("pairs", [CaptionedPictures([PICTURE, PICTURE], ["x", "y"])], dot),
                      Pictures("empty", [], dot)]),
    ]  # fmt: skip


@pytest.fixture
def page(sections: list[Section]) -> str:
    return html_report(f"Set {NASTY}", sections)


def test_names_cannot_break_out_into_html(page):
    assert page.count("<b>") == 3, "the number's, and one for each caption"
    for before in ("Set", "First", "accuracy of", "bad", "Too", "run", "alt", "of", "is"):
        assert f"{before} &lt;b&gt;a&amp;b&lt;/b&gt;" in page
    assert '<h2 id="1">A &amp; B</h2>' in page


def test_the_page_refers_to_nothing_outside_it(page):
    assert not re.search(r"https?:|//|@import|<script|<link|url\(", re.sub(r"base64,[\w+/=]+", "", page))


def test_names_cannot_break_out_of_the_controls_or_the_script_that_mend_labels(tmp_path):
    ending = "</script>"
    card = CaptionedPictures([PICTURE], ["a", "b"], [Mendable("0", f'"{NASTY}', "test", NASTY, ending)])
    bar = Mending([NASTY, ending], ["test"], [{"path": ending}], f"run {NASTY}", "key")
    page = html_report("Mend", [Section("", [bar]), Section("A", [Pictures("p", [card], tmp_path / "p.png")])])
    assert page.count(ending) == 2, "those of the page itself"
    assert NASTY not in page
    assert 'data-path="&#34;&lt;b&gt;a&amp;b' in page
    assert not re.search(r"https?:|//|@import|<script src|<link|url\(", re.sub(r"base64,[\w+/=]+", "", page))
    assert markdown_report("Mend", [Section("", [bar])], tmp_path) == "# Mend\n"


def test_ready_made_html_is_shown_as_it_is_and_left_out_of_markdown(tmp_path):
    sections = [Section("", [Html("<div id='plot'><b>live</b></div>"), Paragraph("after")])]
    assert "<div id='plot'><b>live</b></div>" in html_report("Title", sections)
    assert markdown_report("Title", sections, tmp_path) == "# Title\n\nafter\n"


def test_the_figure_in_the_page_is_the_file(page, tmp_path):
    encoded = re.findall(r'src="data:image/png;base64,([\w+/=]+)"', page)
    assert len(encoded) == 3
    assert base64.b64decode(encoded[0]) == (tmp_path / "figures" / "dot.png").read_bytes()


def test_pictures_are_thumbnails_of_what_they_show(page):
    encoded = re.findall(r'src="data:image/jpeg;base64,([\w+/=]+)"', page)
    assert len(encoded) == 3
    with Image.open(io.BytesIO(base64.b64decode(encoded[0]))) as thumbnail:
        assert thumbnail.size == (224, 224)
        assert abs(np.asarray(thumbnail).astype(int) - 77).max() <= 2


def test_the_sections_come_in_order_and_are_linked_from_the_first(page):
    assert page.index("First &lt;") < page.index('<a href="#1">') < page.index('id="1"') < page.index('id="3"')
    assert page.count("<a href=") == 3


def test_a_group_without_a_picture_says_none(page):
    assert page.index("<p>None.</p>") > page.index("<h3>empty</h3>")


def test_floats_have_four_digits_counts_stay_whole_and_what_is_undefined_is_empty(page):
    assert "<td>0.1235</td><td>3</td>" in page
    assert "<td></td><td>1200</td>" in page
    assert "nan" not in re.sub(r"base64,[\w+/=]+", "", page).lower()


def test_the_command_is_given_where_there_is_one_and_what_is_good_looks_it(page):
    assert page.count("<code>") == 1
    assert page.count('class="verdict good"') == page.count('class="verdict"') == 1


def test_markdown_says_the_same_and_links_the_figures(sections, tmp_path):
    text = markdown_report(f"Set {NASTY}", sections, tmp_path)
    assert text.startswith("# Set \\<b\\>a&b\\</b\\>\n")
    assert text.index("First") < text.index("## A & B") < text.index("## C")
    assert "- accuracy of \\<b\\>a&b\\</b\\>: **84.3%**" in text
    assert f"\n    run {NASTY}\n" in text, "a command is not escaped"
    assert "![of \\<b\\>a&b\\</b\\>](figures/dot.png)" in text
    assert "### empty\n\nNone." in text
    assert "A note." in text
    assert all((tmp_path / path).is_file() for path in re.findall(r"\]\((.+?)\)", text))


def test_a_markdown_table_has_a_line_for_each_row():
    table = pd.DataFrame({"class": ["a|b", "c"], "f1": np.array([0.123456, 1]), "pictures": [3, 4]})
    assert markdown_table(table).split("\n") == [
        "| class | f1 | pictures |",
        "| --- | --- | --- |",
        "| a\\|b | 0.1235 | 3 |",
        "| c | 1.0000 | 4 |",
    ]


@pytest.mark.parametrize(
    ("name", "written"),
    [("*star* `code`", "\\*star\\* \\`code\\`"), ("$x$", "\\$x\\$"), ("__init__", "\\_\\_init\\_\\_"),
     ("fine_tune.lr", "fine_tune.lr"), ("two\nlines", "two lines"), ("猫", "猫")],
)  # fmt: skip
def test_names_are_shown_as_they_are_in_markdown(name, written):
    assert markdown_table(pd.DataFrame({"class": [name]})).split("\n")[-1] == f"| {written} |"


def test_a_table_with_no_rows_still_has_its_heading():
    assert markdown_table(pd.DataFrame({"a": [], "b": []})) == "| a | b |\n| --- | --- |"
