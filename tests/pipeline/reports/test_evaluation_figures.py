import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.calibration import reliability
from pipeline.evaluation.metrics import class_curves, operating_points
from pipeline.reports.evaluation_figures import (
    class_curves_figure,
    confusion_figure,
    embedding_figure,
    operating_figure,
    reliability_figure,
)
from tests.pipeline.drawing import check, in_legend

ODD = ["$_$", "$\\frac$", "a_b^c", "<b>Größe</b>", "a name that is far longer than what an axis has room for"]


def square(number: int) -> pd.DataFrame:
    names = [f"class {index}" for index in range(number)]
    return pd.DataFrame(np.eye(number, dtype=int) * 7 + 1, names, names)


def predictions(classes: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, classes, count), draw.dirichlet(np.ones(classes), count)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("number", [1, 2, 40])
def test_a_confusion_of_few_or_many_classes_can_be_drawn(number, shares):
    figure = confusion_figure(square(number), "True against predicted", shares)
    check(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == square(number).index.tolist()


@pytest.mark.parametrize(("number", "first_text"), [(12, "42%"), (13, "40"), (30, "22"), (31, None)])
def test_a_confusion_of_more_classes_has_less_text(number, first_text):
    texts = [text.get_text() for text in confusion_figure(square(number), "t", shares=True).axes[0].texts]
    assert texts[:1] == ([first_text] if first_text else [])
    assert len(texts) == (number**2 if first_text else 0)


def test_of_very_many_classes_only_some_are_named():
    names = [text.get_text() for text in confusion_figure(square(200), "t").axes[0].get_xticklabels()]
    assert names == [f"class {index}" for index in range(0, 200, 3)]


def test_a_confusion_shows_counts_or_shares_of_the_true_class():
    counts = pd.DataFrame([[3, 1], [0, 0]], ["ant", "bee"], ["ant", "bee"])
    for shares, texts, colours in (
        (False, ["3", "1", "0", "0"], [[3, 1], [0, 0]]),
        (True, ["75%", "25%", "0%", "0%"], [[0.75, 0.25], [0, 0]]),
    ):
        figure = confusion_figure(counts, "t", shares)
        check(figure)
        np.testing.assert_allclose(figure.axes[0].images[0].get_array(), colours)
        at = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
        assert [at[(column, row)] for row in (0, 1) for column in (0, 1)] == texts
        assert figure.axes[0].get_ylabel() == "true"


def test_names_that_look_like_formulas_are_drawn_as_they_are():
    figure = confusion_figure(pd.DataFrame(np.eye(5, dtype=int), ODD, ODD), "t")
    check(figure)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()][:4] == ODD[:4]
    targets, probabilities = predictions(5)
    check(class_curves_figure(class_curves(targets, probabilities, ODD), ODD, "t"))
    check(operating_figure(operating_points(targets == 0, probabilities[:, 0]), ODD[0], ODD))
    check(embedding_figure(probabilities[:, :2], [ODD[one] for one in targets], targets == 1, ODD, "t"))


@pytest.mark.parametrize("classes", [2, 10])
def test_up_to_ten_curves_are_all_named_with_their_areas(classes):
    targets, probabilities = predictions(classes)
    names = [f"class {index}" for index in range(classes)]
    curves = class_curves(targets, probabilities, names)
    figure = class_curves_figure(curves, names, "t")
    check(figure)
    assert in_legend(figure.axes[0]) == [f"{one.label}: {one.roc_auc:.3f}" for one in curves]
    assert in_legend(figure.axes[1]) == [f"{one.label}: {one.average_precision:.3f}" for one in curves]


def test_of_more_curves_the_worst_five_are_named():
    targets, probabilities = predictions(60, 600)
    names = [f"class {index}" for index in range(60)]
    curves = class_curves(targets, probabilities, names)
    figure = class_curves_figure(curves, names, "t")
    check(figure)
    worst = sorted(curves, key=lambda one: one.average_precision)[:5]
    assert {text.split(":")[0] for text in in_legend(figure.axes[1])} == {one.label for one in worst}
    assert len(figure.axes[1].lines) == len(curves)


def test_a_class_that_cannot_be_drawn_has_the_same_number_in_every_figure():
    classes = ["ant", "bee", "猫"]
    curves = class_curves(np.array([1, 2, 2, 1]), np.full((4, 3), 1 / 3), classes)
    assert in_legend(class_curves_figure(curves, classes, "t").axes[0])[1].startswith("no. 3:")
    points = operating_points(np.array([True, False]), np.array([0.2, 0.4]))
    assert "no. 3" in operating_figure(points, "猫", classes).axes[0].get_xlabel()


@pytest.mark.parametrize("count", [1, 200])
def test_the_reliability_diagram_has_a_bar_for_each_bin_that_holds_a_picture(count):
    targets, probabilities = predictions(3, count)
    bins = reliability(probabilities, targets)
    figure = reliability_figure((bins, 0.0515), (bins, 0.06), "t")
    check(figure)
    assert len(figure.axes[0].patches) == (bins["pictures"] > 0).sum()
    assert "ECE 0.0515" in figure.axes[0].get_title()
    assert "ECE 0.0600" in figure.axes[1].get_title()


def test_without_a_temperature_the_reliability_is_shown_once():
    targets, probabilities = predictions(3, 50)
    figure = reliability_figure((reliability(probabilities, targets), 0.0515), None, "t")
    check(figure)
    assert len(figure.axes) == 2
    assert figure.axes[0].get_title() == "not calibrated, ECE 0.0515"


@pytest.mark.parametrize("classes", [1, 2, 60])
def test_the_map_has_a_colour_for_each_class_and_a_ring_for_each_error(classes):
    draw = np.random.default_rng(0)
    names = [f"class {index}" for index in range(classes)]
    labels, wrong = draw.choice(names, 90), draw.random(90) < 0.2
    figure = embedding_figure(draw.normal(size=(90, 2)), labels.tolist(), wrong, names, "t")
    check(figure)
    *by_class, rings = figure.axes[0].collections
    assert len(by_class) == classes
    assert len(rings.get_offsets()) == wrong.sum()
    assert sum(len(one.get_offsets()) for one in by_class) == 90
    assert len({tuple(one.get_facecolor()[0]) for one in by_class if len(one.get_offsets())}) > classes * 0.7
