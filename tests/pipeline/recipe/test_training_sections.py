import pytest
from pydantic import ValidationError

from pipeline.recipe.training_sections import FineTune, Resize, TrainHead, TrainingOptions


@pytest.mark.parametrize("keep", ["first", "best", "average", 1])
def test_weights_are_kept_by_one_of_four_rules(keep):
    with pytest.raises(ValidationError, match="keep"):
        TrainingOptions(keep=keep)


def test_by_default_each_stage_anneals_once_and_the_head_on_stored_activations_alone():
    assert [(stage.cycles, stage.cycle_len) for stage in (TrainHead(), FineTune(), Resize())] == [
        (0, 1),
        (1, 4),
        (1, 4),
    ]
    assert TrainHead().stored_epochs == 10
