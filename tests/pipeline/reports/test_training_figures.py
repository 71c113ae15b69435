import numpy as np
import pandas as pd
import pytest

from pipeline.reports.training_figures import learning_figure, training_figure
from tests.pipeline.drawing import check, in_legend


def history(epochs: int, groups: list[str], steps_each: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An epoch table and a step table that go on from an earlier stage."""
    ends = 100 + steps_each * np.arange(1, epochs + 1)
    by_epoch = pd.DataFrame(
        {
            "step": ends,
            "train_loss": 0.7 / np.arange(1, epochs + 1),
            "valid_loss": 0.8 / np.arange(1, epochs + 1),
            "valid_accuracy": np.linspace(0.5, 0.9, epochs),
        }
    )
    steps = np.arange(101, ends[-1] + 1)
    by_step = pd.DataFrame({"step": steps, "loss": np.linspace(0.9, 0.1, len(steps))})
    for number, group in enumerate(groups):
        by_step[group] = 10.0 ** (number - 4) * np.linspace(1, 1e-3, len(steps))
    return by_epoch, by_step


@pytest.mark.parametrize(
    ("epochs", "groups"), [(1, ["head"]), (3, ["head"]), (3, ["late", "head"]), (1, ["early", "late", "head"])]
)
def test_training_is_drawn_however_short_it_was_and_whatever_was_frozen(epochs, groups):
    figure = training_figure(*history(epochs, groups))
    check(figure)
    assert in_legend(figure.axes[1]) == groups


def test_groups_that_are_thawed_later_are_drawn_from_there_on():
    epochs, steps = history(2, ["late", "head"])
    steps.loc[steps.index < 6, "late"] = float("nan")
    check(training_figure(epochs, steps))


def test_one_step_in_all_can_be_drawn():
    check(training_figure(*history(1, ["head"], steps_each=1)))


def test_each_epoch_has_its_accuracy_written_in():
    figure = training_figure(*history(3, ["head"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0%", "70.0%", "90.0%"]


def test_the_epochs_whose_weights_are_kept_are_marked():
    epochs, steps = history(3, ["head"])
    figure = training_figure(epochs.assign(kept=[False, True, False]), steps)
    (marks,) = (line for line in figure.axes[0].lines if line.get_label() == "kept")
    assert marks.get_xdata().tolist() == [epochs["step"][1]]
    assert marks.get_ydata().tolist() == [epochs["valid_loss"][1]]


def test_the_curves_of_all_stages_are_one_figure_with_each_stage_named_where_it_begins():
    epochs = pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "stage": ["train_head", "train_head", "fine_tune", "fine_tune"],
            "phase": ["stored", "", "", ""],
            "train_loss": [0.7, 0.6, 0.5, 0.4],
            "valid_loss": [0.6, 0.6, 0.5, 0.5],
            "valid_accuracy": [0.5, 0.6, 0.7, 0.8],
        }
    )
    figure = learning_figure(epochs)
    check(figure)
    names = {text.get_text(): text.xy[0] for text in figure.axes[0].texts}
    assert names == {"train_head, stored": 0.5, "train_head": 1.5, "fine_tune": 2.5}
    check(learning_figure(epochs.head(1)))
