import math

import pytest
from optuna.trial import TrialState

from pipeline.sweep.study_figures import study_figures
from tests.pipeline.sweep.studies import RECIPE, add, drawn_study, study_of

ACCURACY = ["valid/accuracy"]
BOTH = ["valid/accuracy", "train/seconds"]
SHORT = {"fine_tune.lr": 1e-3}


def named(figure, start):
    """The traces whose name begins with this."""
    return [trace for trace in figure.data if (trace.name or "").startswith(start)]


def points(trace):
    return list(zip(trace.x, trace.y, strict=True))


def test_all_that_can_be_drawn_is():
    one = study_figures(drawn_study(30), ACCURACY)
    assert list(one) == ["history", "curves", "importances", "slice", "contour", "parallel_coordinates"]
    two = study_figures(drawn_study(20, "maximize", "minimize"), BOTH)
    assert list(two) == ["history", "pareto", "importances", "slice", "contour", "parallel_coordinates"]
    assert len(two["history"]) == 2


@pytest.mark.parametrize(
    ("trials", "names"),
    [
        (0, []),
        (1, ["history", "curves"]),
        (3, ["history", "curves", "slice", "parallel_coordinates"]),
        (12, ["history", "curves", "slice", "contour", "parallel_coordinates"]),
    ],
)
def test_few_trials_give_the_figures_that_make_sense(trials, names):
    figures = study_figures(drawn_study(trials), ACCURACY)
    assert list(figures) == names
    for figure in (figure for row in figures.values() for figure in row):
        assert figure.to_json()


def test_of_trials_that_were_all_pruned_only_curves_are_drawn_and_of_failed_ones_nothing():
    pruned, failed = study_of(), study_of()
    for number in range(6):
        add(pruned, None, {"fine_tune.lr": 1e-4 * (number + 1)}, [0.5 + 0.01 * number], TrialState.PRUNED)
        add(failed, state=TrialState.FAIL)
    assert list(study_figures(pruned, ACCURACY)) == ["curves"]
    assert study_figures(failed, ACCURACY) == {}


def test_running_queued_failed_and_surplus_trials_break_nothing():
    study = drawn_study(20)
    add(study, state=TrialState.FAIL, surplus=True)
    add(study, None, SHORT, [math.nan, 0.5], TrialState.RUNNING)
    study.enqueue_trial(SHORT)
    (figure,) = study_figures(study, ACCURACY)["history"]
    best = next(trace for trace in figure.data if trace.mode == "lines")
    assert list(best.x) == list(range(22)), "the line ends with the last trial that was started"
    assert len(study_figures(study, ACCURACY)) == 6


def test_the_history_marks_the_recipe_and_the_best_at_their_numbers():
    study = study_of()
    add(study, 0.80, **RECIPE)
    add(study, None, {}, [0.79], TrialState.PRUNED)
    add(study, state=TrialState.FAIL)
    add(study, 0.85)
    add(study, 0.70)
    (figure,) = study_figures(study, ACCURACY)["history"]
    assert [points(trace) for trace in named(figure, "the recipe (trial 0)")] == [[(0, 0.80)]]
    assert [points(trace) for trace in named(figure, "best (trial 3)")] == [[(3, 0.85)]]
    dots, line = figure.data[:2]
    assert points(dots) == [(0, 0.80), (3, 0.85), (4, 0.70)]
    assert list(line.y) == [0.80, 0.80, 0.80, 0.85, 0.85]


def test_each_objective_has_a_history_of_its_own_with_its_best_value():
    up, down = study_figures(drawn_study(8, "maximize", "minimize"), BOTH)["history"]
    assert [figure.layout.yaxis.title.text for figure in (up, down)] == BOTH
    assert list(up.data[1].y) == sorted(up.data[1].y)
    assert list(down.data[1].y) == sorted(down.data[1].y, reverse=True)
    assert named(up, "proposed (trial ")
    assert named(down, "proposed (trial ")


def test_a_loss_without_end_is_no_best():
    study = study_of("minimize")
    add(study, math.inf, {}, [math.inf, math.nan])
    add(study, 0.5, {}, [0.7, 0.5])
    figures = study_figures(study, ["valid/loss"])
    assert list(figures) == ["history", "curves"]
    assert [points(trace) for trace in named(figures["history"][0], "best (trial 1)")] == [[(1, 0.5)]]
    assert "Infinity" not in figures["history"][0].to_json()


def test_in_the_curves_the_recipe_and_the_best_are_named_and_pruned_trials_end_early():
    study = study_of()
    add(study, 0.8, {}, [0.6, 0.8], **RECIPE)
    add(study, 0.9, {}, [0.7, 0.9])
    add(study, None, {}, [0.3], TrialState.PRUNED)
    (figure,) = study_figures(study, ACCURACY)["curves"]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["the recipe (trial 0)", "best (trial 1)"]
    assert [points(trace) for trace in named(figure, "Trial2")] == [[(1, 0.3)]]


def test_each_key_has_a_panel_in_which_both_trials_are_marked_at_its_value():
    study = drawn_study(30)
    best, own = study.best_trial, study.trials[0]
    rows = study_figures(study, ACCURACY)["slice"]
    titles = [axis.title.text for figure in rows for axis in figure.select_xaxes()]
    assert sorted(titles) == sorted(own.params)
    for trial, name in ((best, f"best (trial {best.number})"), (own, "the recipe (trial 0)")):
        marked = {value for figure in rows for trace in named(figure, name) for value in trace.x}
        assert marked == {repr(value) if isinstance(value, str) else value for value in trial.params.values()}
        assert all(sum(trace.showlegend for trace in named(figure, name)) == 1 for figure in rows)
        assert {value for figure in rows for trace in named(figure, name) for value in trace.y} == {trial.value}


def test_the_contour_is_of_the_three_most_important_keys():
    study = drawn_study(60)
    figures = study_figures(study, ACCURACY)
    most_important = list(figures["importances"][0].data[0].y)[::-1][:3]
    assert most_important[0] == "fine_tune.lr"
    titles = {axis.title.text for axis in figures["contour"][0].select_xaxes() if axis.title.text}
    assert titles == set(most_important)


def test_names_of_keys_are_written_in_full():
    (figure,) = study_figures(drawn_study(30), ACCURACY)["parallel_coordinates"]
    names = [text.replace("<br>", "") for text in figure.layout.xaxis.ticktext]
    assert names == ["valid/accuracy", *sorted(drawn_study(1).trials[0].params)]


@pytest.mark.parametrize(("direction", "is_reversed"), [("maximize", False), ("minimize", True)])
def test_the_better_the_darker(direction, is_reversed):
    study = study_of(direction)
    for number in range(8):
        add(study, 0.1 * number, {"fine_tune.lr": 1e-4 * (number + 1), "augment.strength": 0.2 * number})
    (contour,) = study_figures(study, ACCURACY)["contour"]
    assert bool(contour.data[0].reversescale) == is_reversed


def test_with_two_objectives_keys_are_drawn_by_the_first_and_the_front_by_both():
    study = study_of("maximize", "minimize")
    for number, values in enumerate(([0.8, 10.0], [0.9, 90.0], [0.85, 40.0], [0.7, 50.0])):
        add(study, values, {"fine_tune.lr": 1e-3 * (number + 1)}, **(RECIPE if number == 3 else {}))
    figures = study_figures(study, BOTH)
    (pareto,) = figures["pareto"]
    others, front = pareto.data[:2]
    assert sorted(points(front)) == [(0.8, 10.0), (0.85, 40.0), (0.9, 90.0)]
    assert points(others) == [(0.7, 50.0)]
    assert points(named(pareto, "proposed (trial 1)")[0]) == [(0.9, 90.0)]
    assert points(named(pareto, "the recipe (trial 3)")[0]) == [(0.7, 50.0)]
    assert [pareto.layout.xaxis.title.text, pareto.layout.yaxis.title.text] == BOTH
    (lr,) = figures["slice"]
    assert list(lr.data[0].y) == [0.8, 0.9, 0.85, 0.7]
