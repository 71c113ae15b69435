import math

import pytest

from pipeline.sweep.key_figures import contour_figure, importances_figure, parallel_figure, slice_figure
from pipeline.sweep.tuned_keys import weighed_keys
from tests.pipeline.drawing import check
from tests.pipeline.sweep.studies import add, drawn_study, study_of

ACCURACY = "valid/accuracy"


@pytest.fixture(scope="module")
def study():
    return drawn_study(30, seed=2)


def test_each_key_has_a_panel_with_its_own_scale(study):
    figure = slice_figure(study, ACCURACY)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == [
        "fine_tune.cycle_len", "fine_tune.lr", "fine_tune.weight_decay", "augment.strength", "augment.flips",
    ]  # fmt: skip
    assert [text.get_text() for text in shown[1].get_xticklabels()] == ["1e-5", "0.0001", "0.001", "0.01"]
    assert {text.get_text() for text in shown[4].get_xticklabels()} == {"none", "$sideways$"}
    check(figure)


def test_pairs_are_of_the_most_important_keys_that_have_a_scale(study):
    figure = contour_figure(study, ACCURACY)
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == 3
    named = {axes.get_xlabel() for axes in panels} | {axes.get_ylabel() for axes in panels}
    assert named == set([key for key in weighed_keys(study)["key"] if key != "augment.flips"][:3])
    assert named != {"fine_tune.cycle_len", "fine_tune.lr", "fine_tune.weight_decay"}, "the first in the recipe"
    check(figure)


def test_the_surface_is_high_where_the_trials_were_good():
    study = study_of()
    for rate in (1e-5, 1e-4, 1e-3, 1e-2):
        for strength in (0.0, 0.5, 1.0, 1.5, 2.0):
            value = 0.9 - 0.05 * (math.log10(rate) + 4) ** 2 - 0.1 * (strength - 2.0) ** 2
            add(study, value, {"fine_tune.lr": rate, "augment.strength": strength})
    panel = contour_figure(study, ACCURACY).axes[0]
    assert [panel.get_xlabel(), panel.get_ylabel()] in (
        ["fine_tune.lr", "augment.strength"], ["augment.strength", "fine_tune.lr"],
    )  # fmt: skip
    (surface,) = [one for one in panel.collections if hasattr(one, "levels")]
    places = [path.vertices.mean(axis=0) for path in surface.get_paths() if len(path.vertices)]
    best = dict(zip([panel.get_xlabel(), panel.get_ylabel()], places[-1], strict=True))
    assert best == pytest.approx({"fine_tune.lr": 1 / 3, "augment.strength": 0.95}, abs=0.12)


def test_every_complete_trial_is_a_line_over_all_keys_and_objectives(study):
    figure = parallel_figure(study, [ACCURACY])
    (axes,) = figure.axes
    complete = sum(trial.state.name == "COMPLETE" for trial in study.trials)
    lines = [line for line in axes.lines if len(line.get_ydata()) == 6]
    assert len(lines) == complete + 2, "the best and the recipe's are drawn once more on top"
    ends = [line.get_ydata()[-1] for line in lines[:complete]]
    assert ends == sorted(ends), "the better lie on the worse"
    assert [text.get_text() for text in axes.get_xticklabels()][-1] == "valid/\naccuracy"
    assert "$sideways$" in {text.get_text() for text in axes.texts}
    check(figure)


def test_two_objectives_have_an_axis_each():
    figure = parallel_figure(drawn_study(6, "maximize", "minimize"), [ACCURACY, "train/seconds"])
    names = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert names[-2:] == ["valid/\naccuracy", "train/\nseconds"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1].startswith("proposed")


def test_bars_come_with_how_many_trials_they_are_from(study):
    figure = importances_figure(study, ACCURACY)
    complete = sum(trial.state.name == "COMPLETE" for trial in study.trials)
    assert f"from {complete} complete trials" in figure.axes[0].get_title()
    assert figure.axes[0].get_yticklabels()[-1].get_text() == "fine_tune.lr"
    check(figure)


def test_a_key_that_some_trials_lack_and_a_value_without_end_are_left_out_where_they_are_missing():
    study = study_of("minimize")
    for number in range(8):
        params = {"fine_tune.lr": 1e-4 * (number + 1), "augment.strength": 0.2 * number}
        add(study, 0.1 * number, params if number % 2 else {"fine_tune.lr": 5e-4 + 1e-4 * number})
    add(study, math.inf, {"fine_tune.lr": 1e-2, "augment.strength": 1.0})
    for figure in (slice_figure(study, "valid/loss"), contour_figure(study, "valid/loss")):
        check(figure)
    assert parallel_figure(study, ["valid/loss"]) is not None


def test_there_is_no_figure_of_too_few_trials():
    draw = (slice_figure, contour_figure, importances_figure)
    for trials in (0, 1):
        assert [one(drawn_study(trials), ACCURACY) for one in draw] == [None, None, None]
        assert parallel_figure(drawn_study(trials), [ACCURACY]) is None
    assert contour_figure(drawn_study(5), ACCURACY) is None
    assert importances_figure(drawn_study(9), ACCURACY) is None


def test_a_choice_has_no_surface():
    study = study_of()
    for number in range(8):
        add(
            study,
            0.1 * number,
            {"fine_tune.lr": 1e-4 * (number + 1), "augment.flips": ["none", "$sideways$"][number % 2]},
        )
    assert contour_figure(study, ACCURACY) is None
