import io

import pandas as pd
from PIL import Image

from pipeline.comparison_figures import confusion_difference_figure, curves_figure


def curve(*values):
    return pd.DataFrame({"step": range(len(values)), "value": values})


def test_every_run_has_a_line_of_its_own_colour_in_each_panel_that_it_was_measured_for():
    curves = {
        "$a_1$": {"train/loss": curve(1.0, 0.5), "valid/loss": curve(0.9, 0.6)},
        "b": {"train/loss": curve(0.8, 0.4)},
    }
    figure = curves_figure(curves, ["train/loss", "valid/loss"])
    train, valid = figure.axes
    assert [line.get_ydata().tolist() for line in train.lines] == [[1.0, 0.5], [0.8, 0.4]]
    assert train.lines[0].get_color() != train.lines[1].get_color()
    assert len(valid.lines) == 1
    assert (train.get_ylabel(), valid.get_ylabel()) == ("train/loss", "valid/loss")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$a_1$", "b"]
    figure.savefig(io.BytesIO())


def test_a_run_that_was_measured_in_a_later_panel_alone_is_named_too():
    figure = curves_figure(
        {"a": {"train/loss": curve(1.0)}, "b": {"valid/loss": curve(1.0)}}, ["train/loss", "valid/loss"]
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_the_difference_is_written_with_its_sign():
    difference = pd.DataFrame([[3, -3], [0, 0]], index=["cat", "$x$"], columns=["cat", "$x$"])
    figure = confusion_difference_figure(difference)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["+3", "-3", "0", "0"]
    file = io.BytesIO()
    figure.savefig(file)
    assert Image.open(file).size[0] > 300
