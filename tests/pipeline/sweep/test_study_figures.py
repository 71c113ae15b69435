import math
from itertools import pairwise

import matplotlib
import pytest
from optuna.trial import TrialState

from pipeline.sweep.study_figures import history_figure, learning_curves_figure, pareto_figure, sweep_figures
from tests.pipeline.drawing import check
from tests.pipeline.sweep.studies import RECIPE, add, drawn_study, study_of

ACCURACY = ["valid/accuracy"]
BOTH = ["valid/accuracy", "train/seconds"]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_all_that_can_be_drawn_is_and_the_style_of_other_figures_stays():
    before = dict(matplotlib.rcParams)
    figures = sweep_figures(drawn_study(30), ACCURACY)
    assert list(figures) == ["history", "curves", "importances", "slice", "contour", "parallel_coordinates"]
    assert dict(matplotlib.rcParams) == before
    assert list(sweep_figures(drawn_study(20, "maximize", "minimize"), BOTH)) == [
        "history", "pareto", "importances", "slice", "contour", "parallel_coordinates",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("trials", "names"),
    [(0, []), (1, ["history", "curves"]), (3, ["history", "curves", "slice", "parallel_coordinates"])],
)
def test_few_trials_give_the_figures_that_make_sense(trials, names):
    figures = sweep_figures(drawn_study(trials), ACCURACY)
    assert list(figures) == names
    for figure in figures.values():
        check(figure)


def test_where_all_were_pruned_they_are_shown_and_where_all_failed_nothing_is():
    pruned, failed = study_of(), study_of()
    for number in range(6):
        add(pruned, None, {"fine_tune.lr": 1e-4 * (number + 1)}, [0.5 + 0.01 * number], TrialState.PRUNED)
        add(failed, state=TrialState.FAIL)
    assert list(sweep_figures(pruned, ACCURACY)) == ["history", "curves", "slice"]
    assert sweep_figures(failed, ACCURACY) == {}


def test_the_history_marks_the_recipe_the_best_and_what_failed():
    study = study_of()
    add(study, 0.80, **RECIPE)
    add(study, None, {}, [0.79], TrialState.PRUNED)
    add(study, state=TrialState.FAIL)
    add(study, state=TrialState.FAIL)
    add(study, 0.85, system={"failed_trial": 3, "retry_history": [3]})
    figure = history_figure(study, ACCURACY)
    assert set(legend(figure)) == {
        "pruned", "complete", "best so far", "failed", "broken off, run again", "the recipe (trial 0)",
        "best (trial 4)",
    }  # fmt: skip
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["failed"].get_xdata() == [2]
    assert lines["broken off, run again"].get_xdata() == [3]
    assert lines["best so far"].get_xydata().tolist() == [[0, 0.80], [4, 0.85], [4, 0.85]]
    check(figure)


def test_each_objective_has_a_history_of_its_own():
    figure = history_figure(drawn_study(8, "maximize", "minimize"), BOTH)
    assert [axes.get_ylabel() for axes in figure.axes] == BOTH
    lines = [{line.get_label(): line for line in axes.lines} for axes in figure.axes]
    up, down = (list(of_panel["best so far"].get_ydata()) for of_panel in lines)
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert len(set(up)) > 1 or len(set(down)) > 1


def test_a_loss_without_end_is_no_best_and_breaks_no_axis():
    study = study_of("minimize")
    add(study, math.inf, {}, [math.inf, math.nan])
    add(study, 0.5, {}, [0.7, 0.5])
    for figure in sweep_figures(study, ["valid/loss"]).values():
        check(figure)


def test_curves_of_pruned_trials_end_in_a_dot_and_the_best_is_named():
    study = study_of()
    add(study, 0.8, {}, [0.6, 0.8], **RECIPE)
    add(study, 0.9, {}, [0.7, 0.9])
    add(study, None, {}, [0.3], TrialState.PRUNED)
    figure = learning_curves_figure(study, ACCURACY[0])
    assert legend(figure) == ["the recipe (trial 0)", "best (trial 1)", "complete", "pruned"]
    ends = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_label() == "_end"]
    assert ends == [[[1, 0.3]]]
    check(figure)


def test_the_front_is_joined_from_cheap_to_dear_and_numbered():
    study = study_of("maximize", "minimize")
    for values in ([0.8, 10.0], [0.9, 90.0], [0.85, 40.0], [0.7, 50.0]):
        add(study, values)
    figure = pareto_figure(study, BOTH)
    (axes,) = figure.axes
    front = axes.lines[0].get_xydata().tolist()
    assert front == [[10, 0.8], [40, 0.85], [90, 0.9]]
    assert all(one[0] < other[0] for one, other in pairwise(front))
    assert [text.get_text() for text in axes.texts] == ["0", "2", "1"]
    assert axes.get_xlabel() == "train/seconds (less is better)"
    check(figure)


def test_numbers_that_would_lie_on_one_another_are_left_out():
    study = study_of("maximize", "minimize")
    for values in ([0.8, 10.0], [0.8001, 10.1], [0.9, 90.0]):
        add(study, values)
    assert len(pareto_figure(study, BOTH).axes[0].texts) == 2
