import pytest
from pydantic import ValidationError

from pipeline.recipe.picture_sections import Augment, Data, Head, Model


def test_by_default_nothing_turns_pictures_upside_down_or_blends_them():
    augment = Augment()
    assert (augment.flip, augment.mixup, augment.cutmix, augment.erase) == ("sideways", 0, 0, 0)


@pytest.mark.parametrize("given", [[0], [0, 1, 2], "all", [0, "white"]])
def test_a_range_is_one_of_two_words_or_two_numbers(given):
    with pytest.raises(ValidationError, match="range"):
        Data(range=given)


def test_a_range_of_two_numbers_is_kept():
    assert Data(range=[0, 4095]).range == [0, 4095]


@pytest.mark.parametrize("name", [""])
def test_a_backbone_needs_a_name_that_can_be_one(name):
    with pytest.raises(ValidationError, match="backbone"):
        Model(backbone=name)


def test_a_head_of_no_hidden_layer_is_linear_and_a_negative_one_is_refused():
    assert Head(hidden=0).hidden == 0
    with pytest.raises(ValidationError, match="hidden"):
        Head(hidden=-1)
