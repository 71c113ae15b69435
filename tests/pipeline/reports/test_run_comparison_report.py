import io

import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation.run_comparison import EvaluatedRun
from pipeline.reports.run_comparison_report import confusion_difference_figure, run_curves_figure, write_run_comparison
from pipeline.system.errors import UserError


def evaluated(name, predicted, hashes=("1", "2", "3")):
    table = pd.DataFrame({"hash": hashes, "label": ["cat", "dog", "dog"], "predicted": predicted})
    curves = {"valid/loss": pd.DataFrame({"step": [1, 2], "value": [0.5, 0.4]})}
    settings = {"seed": 0, "fine_tune.lr": name}
    return EvaluatedRun(name, name, settings, {"test/accuracy": 0.5}, "test", ["cat", "dog"], table, curves)


def test_the_page_holds_every_table_and_figure_by_itself(tmp_path):
    runs = [
        evaluated("<a>", ["cat", "dog", "cat"]),
        evaluated("b", ["cat", "dog", "dog"]),
        evaluated("c", ["dog", "dog", "dog"]),
    ]
    summary = write_run_comparison(runs, tmp_path)
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;a&gt;" in page
    assert "<a>" not in page
    for words in (
        "3 runs on the same 3 test pictures",
        "McNemar",
        "fine_tune.lr",
        "test/accuracy",
        "may well be chance",
    ):
        assert words in page
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.html", "figures", "mcnemar.csv", "metrics.csv", "settings.csv",
    }  # fmt: skip
    assert pd.read_csv(tmp_path / "mcnemar.csv")["only_other"].tolist() == [1, 1, 0]
    assert summary.startswith("3 runs on the same 3 test pictures.")


def test_nothing_is_written_of_runs_on_different_pictures(tmp_path):
    runs = [evaluated("a", ["cat", "dog", "cat"]), evaluated("b", ["cat", "dog", "dog"], hashes=("1", "2", "9"))]
    with pytest.raises(UserError, match="of which 2 are the same"):
        write_run_comparison(runs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def curve(*values):
    return pd.DataFrame({"step": range(len(values)), "value": values})


def test_every_run_has_a_line_of_its_own_colour_in_each_panel_that_it_was_measured_for():
    curves = {
        "$a_1$": {"train/loss": curve(1.0, 0.5), "valid/loss": curve(0.9, 0.6)},
        "b": {"train/loss": curve(0.8, 0.4)},
    }
    figure = run_curves_figure(curves, ["train/loss", "valid/loss"])
    train, valid = figure.axes
    assert [line.get_ydata().tolist() for line in train.lines] == [[1.0, 0.5], [0.8, 0.4]]
    assert train.lines[0].get_color() != train.lines[1].get_color()
    assert len(valid.lines) == 1
    assert (train.get_ylabel(), valid.get_ylabel()) == ("train/loss", "valid/loss")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$a_1$", "b"]
    figure.savefig(io.BytesIO())


def test_a_run_that_was_measured_in_a_later_panel_alone_is_named_too():
    figure = run_curves_figure(
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
