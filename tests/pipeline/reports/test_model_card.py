import pandas as pd
import pytest

from pipeline.recipe.schema import Recipe, flatten
from pipeline.reports.model_card import model_card
from tests.pipeline.small_evaluations import cats_and_dogs

BUILT = {"backbone": "tf_efficientnet_lite0", "image_px": 256, "epochs": 11}
PICTURES = pd.DataFrame({"class": ["cat", "dog"], "test": [3, 4], "train": [10, 20], "valid": [1, 2]})
METRICS = {"test/accuracy": 0.875, "train/plain_loss": 0.1, "onnx_max_difference": 1e-7}


def card(split="test", backbone="tf_efficientnet_lite0", **settings) -> str:
    flat = flatten(Recipe()) | {key.replace("__", "."): value for key, value in settings.items()}
    built = BUILT | {"backbone": backbone}
    evaluation = cats_and_dogs(METRICS, split, verdict="It over-fits.")
    return model_card("thaw-pets", PICTURES, evaluation, METRICS, built, flat, "run1")


def test_it_says_what_the_model_tells_apart_and_from_how_many_pictures():
    text = card()
    assert text.startswith("thaw-pets tells cat and dog apart in a picture.\n")
    assert "40 pictures from elpv." in text
    assert ["cat", "3", "10", "1"] in [line.split() for line in text.splitlines()]


def test_it_holds_the_figures_of_the_split_evaluated_by_class_too_and_the_verdict():
    text = card()
    assert "- test/accuracy: 0.875\n" in text
    assert "train/plain_loss" not in text
    (cat,) = [cells for cells in map(str.split, text.splitlines()) if cells[:2] == ["cat", "0.5000"]]
    assert cat[-1] == "3"
    assert "It over-fits." in text


def test_it_says_how_it_was_trained_and_where_the_whole_recipe_is():
    text = card(fine_tune__cycles=5)
    assert "- backbone: tf_efficientnet_lite0\n" in text
    assert "- fine_tune.cycles: 5\n" in text
    assert "`recipe.yaml` of run `run1`" in text


def test_each_step_of_a_list_of_sizes_is_said():
    steps = {key: value for key, value in flatten(Recipe()).items() if not key.startswith("resize.")}
    steps |= {"resize.0.image_px": 224, "resize.1.image_px": 300}
    text = model_card("thaw-pets", PICTURES, cats_and_dogs(METRICS, "test"), METRICS, BUILT, steps, "run1")
    assert "- resize.0.image_px: 224\n- resize.1.image_px: 300\n" in text


def test_figures_on_validation_pictures_are_said_to_flatter():
    assert "flatter" in card(split="valid")
    assert "flatter" not in card()


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({}, ["CC BY-NC-SA 4.0", "not for commercial use", "Apache-2.0"], ["not known here"]),
        ({"data__source": "photos"}, ["not known here", "Apache-2.0"], ["CC BY-NC-SA"]),
        ({"model__weights": "random"}, ["CC BY-NC-SA 4.0"], ["Apache", "licence of their own"]),
        ({"backbone": "resnet18"}, ["(resnet18, auto) come with a licence of their own"], ["Apache"]),
    ],
)
def test_it_names_the_licences_that_are_known_and_says_which_are_not(settings, said, unsaid):
    text = card(**settings).split("## Licence")[1]
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)
