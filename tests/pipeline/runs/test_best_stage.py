import pytest

from pipeline.runs.best_stage import best_stage
from pipeline.tracking import RunRef


def stage(accuracy: float, loss: float) -> RunRef:
    return RunRef("run", "stage", "", None, {"kept_valid_accuracy": accuracy, "kept_valid_loss": loss})


@pytest.mark.parametrize(
    ("tuned", "larger", "best"),
    [
        ((0.80, 0.5), (0.85, 0.9), "resize"),
        ((0.90, 0.9), (0.85, 0.2), "fine_tune"),
        ((0.85, 0.4), (0.85, 0.5), "fine_tune"),
        ((0.85, 0.5), (0.85, 0.4), "resize"),
        ((0.85, 0.4), (0.85, 0.4), "resize"),
    ],
)
def test_the_highest_accuracy_wins_then_the_lowest_loss_then_the_last(tuned, larger, best):
    done = {"precompute": RunRef("run", "precompute", "", None), "train_head": stage(0.7, 0.6)}
    found, why = best_stage(done | {"fine_tune": stage(*tuned), "resize": stage(*larger)})
    assert found == best
    assert why.startswith(f"The network of {best}")
    assert all(f"{accuracy:.4f}" in why for accuracy in (tuned[0], larger[0], 0.7))


def test_what_is_better_than_all_before_it_but_worse_than_what_came_first_is_not_taken():
    done = {"train_head": stage(0.855, 0.4), "fine_tune": stage(0.83, 0.4), "resize": stage(0.84, 0.3)}
    assert best_stage(done)[0] == "train_head"
    assert best_stage({"train_head": stage(0.855, 0.4)})[0] == "train_head"
