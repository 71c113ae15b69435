import pytest

from pipeline.reports.figures import plot_labels


def test_plain_names_stay_as_they_are():
    names = ["ant", "Größe", "a_b^c $x$", "<b>", "жук"]
    assert plot_labels(names) == names


def test_a_long_name_keeps_its_beginning_and_its_end():
    (shown,) = plot_labels(["a species with a name that goes on and on 17"], longest=20)
    assert len(shown) == 20
    assert shown.startswith("a species")
    assert shown.endswith(" on 17")
    assert "…" in shown


def test_names_that_would_look_the_same_or_cannot_be_drawn_are_numbered_by_their_position():
    long = "a very long name of which the middle differs {} but the end does not"
    assert plot_labels(["ant", long.format("here"), long.format("there"), "猫"]) == ["ant", "no. 2", "no. 3", "no. 4"]


@pytest.mark.parametrize(("name", "shown"), [("two\nlines", "two lines"), ("  ", "no. 1"), ("", "no. 1")])
def test_a_name_is_one_line_and_never_empty(name, shown):
    assert plot_labels([name]) == [shown]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("🐈 cat", "? cat"),
        ("cat 🐈🐕?", "cat ??"),
        ("猫 cats 犬", "? cats ?"),
        ("🐈", "no. 1"),
        ("🐈 🐈", "no. 1"),
        ("\x07bell", "?bell"),
    ],
)
def test_what_the_font_lacks_is_replaced_where_enough_is_left_to_read(name, shown):
    assert plot_labels([name]) == [shown]
    assert plot_labels(["🐈 cat", "🐕 cat"]) == ["no. 1", "no. 2"]
