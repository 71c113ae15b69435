import io
import re

import pytest

from pipeline.system import console
from pipeline.system.console import duration, say, table, track, warn


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7260, "2 h 01 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_a_duration_is_short_and_readable(seconds, words):
    assert duration(seconds) == words


def test_sentences_go_to_standard_output_and_warnings_to_standard_error(capsys):
    say("done")
    warn("careful")
    assert capsys.readouterr() == ("done\n", "careful\n")


def test_items_come_through_unchanged_and_one_at_a_time():
    items = [object() for _ in range(5)]
    taken = []

    def source():
        for item in items:
            taken.append(item)
            yield item

    for count, item in enumerate(track(source(), "working", 5, "things"), 1):
        assert item is items[count - 1]
        assert len(taken) == count


def test_a_log_file_gets_lines_in_between_but_none_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    assert list(track(range(3), "decoding", 5, "images", per_item=2)) == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "decoding: 2 of 5 images (40%)",
        "decoding: 4 of 5 images (80%)",
    ]
    assert all(re.search(r", [\d,]+ images/s, [\d.]+ s left$", line) for line in lines)


def test_work_that_is_soon_done_writes_no_line(capsys):
    assert list(track(range(3), "decoding", 3, "images")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("total", [0, -1])
def test_nothing_to_count_is_no_error_and_shows_nothing(monkeypatch, capsys, total):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    assert list(track(iter("ab"), "working", total, "things")) == ["a", "b"]
    assert list(track([], "working", total, "things")) == []
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_bar_is_drawn_and_items_stay_as_they_are(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert list(track(range(3), "decoding", 3, "images")) == [0, 1, 2]
    assert "decoding" in screen.getvalue()


def test_a_table_shows_its_title_its_columns_and_its_rows(capsys):
    table("What was done", ("stage", "time"), [("precompute", "1.0 s"), ("resize", "12 s")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "What was done"
    assert any("stage" in line and "time" in line for line in lines)
    first, second = (next(line for line in lines if name in line) for name in ("precompute", "resize"))
    assert first.index("precompute") == second.index("resize")
    assert first.index("1.0 s") + len("1.0 s") == second.index("12 s") + len("12 s")


def test_a_wide_table_is_not_cut_in_a_log_file(capsys):
    name = "x" * 60
    table("t", ("stage", "where"), [("resize", name)])
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("cell", ["x[/y]", "[bold]cat[/bold]", ":cat:"])
def test_a_cell_with_markup_is_shown_as_it_is(capsys, cell):
    table("t", ("class", "note"), [(cell, cell)])
    assert capsys.readouterr().out.count(cell) == 2
