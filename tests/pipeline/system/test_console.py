import io
import os
import re
import subprocess
import sys
import threading

import pytest

from pipeline.system import console
from pipeline.system.console import OutputClosed, duration, guarded_output, held, roughly, say, table, track, warn


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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"), (9.6, "10 s"), (59.4, "59 s"), (59.6, "1.0 min"), (85, "1.4 min"), (595, "9.9 min"),
        (700, "12 min"), (3569, "59 min"), (3571, "1.0 h"), (9000, "2.5 h"), (40 * 3600, "40 h"),
    ],
)  # fmt: skip
def test_an_estimate_has_two_digits(seconds, words):
    assert roughly(seconds) == words


def test_what_is_held_back_comes_after_the_sentence_that_releases_it_and_is_never_lost(capsys):
    with held() as release:
        say("second")
        assert capsys.readouterr().out == ""
        release("first")
        assert capsys.readouterr().out == "first\nsecond\n"
        say("third")
        release("never")
        assert capsys.readouterr().out == "third\n"
    with held():
        say("at the end")
    say("after")
    assert capsys.readouterr().out == "at the end\nafter\n"


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


def ascii_stream():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


def test_what_a_terminal_cannot_encode_is_escaped(monkeypatch):
    out, errors = ascii_stream(), ascii_stream()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", errors)
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    say("  кошка 🐈")
    warn("größer")
    table("Größe", ("класс", "…"), [("кошка", "1"), ("dog", "2")])
    assert list(track(range(2), "größer", 2, "images")) == [0, 1]
    written = out.buffer.getvalue().decode("ascii")
    assert written.startswith("  \\u043a\\u043e\\u0448\\u043a\\u0430 \\U0001f408\n")
    first, second = (
        next(line for line in written.splitlines() if f" {name} " in line)
        for name in ("\\u043a\\u043e\\u0448\\u043a\\u0430", "dog")
    )
    assert len(first) == len(second), "columns are as wide as what is escaped in them"
    assert "gr\\xf6\\xdfer: 1 of 2" in written
    assert errors.buffer.getvalue() == b"gr\\xf6\\xdfer\n"


def test_a_name_that_is_no_unicode_is_escaped_in_any_encoding(capsys):
    say("caf\udce9.png")
    assert capsys.readouterr().out == "caf\\udce9.png\n"


def test_a_program_that_was_started_without_output_works(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    say("done")
    warn("careful")
    table("t", ("a",), [("b",)])
    assert list(track(range(2), "working", 2, "images")) == [0, 1]


class ClosedPipe(io.StringIO):
    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


def test_where_nobody_reads_on_the_main_thread_ends_as_by_ctrl_c_and_others_go_on(monkeypatch):
    monkeypatch.setattr("sys.stdout", ClosedPipe())
    other = threading.Thread(target=say, args=["from another thread"])
    other.start()
    other.join()
    for write in (lambda: say("done"), lambda: table("t", ("a",), [("b",)])):
        with pytest.raises(KeyboardInterrupt) as caught:
            write()
        assert caught.type is OutputClosed


def printed(code, to):
    """(exit code, standard error) of a program that runs `code` and writes to a pipe that is read up to `to` bytes."""
    lines = ["import sys", "from pipeline.system.console import guarded_output, say", code]
    program = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""})  # fmt: skip
    program.stdout.read(to)
    program.stdout.close()
    errors = program.stderr.read().decode()
    program.stderr.close()
    return program.wait(20), errors


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("with guarded_output():\n  [print('кошка' * 999) for _ in range(999)]", 141),
        ("with guarded_output():\n  print('buffered')\n  import time; time.sleep(0.3); sys.exit(0)", 0),
    ],
    ids=["what a library prints", "what is left in the buffer"],
)
def test_a_pipe_that_is_closed_is_no_traceback(code, status):
    assert printed(code, 10 if status else 0) == (status, "")


def test_another_pipe_that_breaks_is_an_error_all_the_same(capsys):
    with pytest.raises(BrokenPipeError), guarded_output():
        raise BrokenPipeError
