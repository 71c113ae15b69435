import pytest

from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan.work import StageWork, Training, work_of

COUNTS = {"train": 100, "valid": 20, "test": 30}


def work(counts=COUNTS, **overrides):
    return work_of(
        override_recipe(Recipe(), {key.replace("__", "."): str(one) for key, one in overrides.items()}), counts
    )


def test_every_stage_of_the_default_recipe_with_what_it_does():
    found = work(precompute__image_px=64, resize__image_px=96)
    assert list(found) == [
        "precompute", "lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize", "evaluate",
    ]  # fmt: skip
    assert found["precompute"] == StageWork(64, opened=150, passed=150)
    assert found["lr_find"] == StageWork(64, head_steps=90, head_batch_size=32)
    assert found["train_head"] == StageWork(64, head_steps=10 * 3, head_batch_size=32)
    assert found["lr_find_unfrozen"] == StageWork(64, trainings=(Training("none", 64, 32, 60),))
    assert found["fine_tune"] == StageWork(64, trainings=(Training("none", 64, 32, 4 * 3, 4 * 20),))
    assert found["resize"] == StageWork(96, opened=150, trainings=(Training("early", 96, 32, 4 * 3, 4 * 20),))
    assert found["evaluate"] == StageWork(96, passed=150 + 3 * 30)


@pytest.mark.parametrize(
    ("overrides", "stage", "expected"),
    [
        ({"precompute__views": 2}, "precompute", StageWork(320, 150, 150 + 200)),
        ({"precompute__views": 2}, "train_head", StageWork(320, head_steps=10 * 9, head_batch_size=32)),
        (
            {"train_head__cycles": 2, "train_head__cycle_mult": 2, "train_head__fraction": 0.5},
            "train_head",
            StageWork(320, 0, 0, 10, 32, (Training("body", 320, 32, 3, 60),)),
        ),
        (
            {"precompute__cut": "late", "train_head__freeze": "early", "train_head__stored_epochs": 1},
            "train_head",
            StageWork(320, trainings=(Training("early", 320, 32, 3),)),
        ),
        (
            {"fine_tune__gradual_epochs": 1, "fine_tune__cycle_len": 2},
            "fine_tune",
            StageWork(
                320,
                trainings=(
                    Training("body", 320, 32, 3, 20), Training("early", 320, 32, 3, 20),
                    Training("none", 320, 32, 6, 40),
                ),
            ),
        ),
        (
            {"resize__gradual_epochs": 1, "resize__cycle_len": 1, "resize__freeze": "early"},
            "resize",
            StageWork(384, 150, trainings=(Training("body", 384, 32, 3, 20), Training("early", 384, 32, 3, 20))),
        ),
        ({"evaluate__tta_views": 1}, "evaluate", StageWork(384, passed=150)),
    ],
)  # fmt: skip
def test_a_key_that_changes_how_much_there_is_to_do(overrides, stage, expected):
    assert work(**overrides)[stage] == expected


def test_where_there_is_no_test_split_the_views_are_of_the_validation_split():
    assert work({"train": 100, "valid": 20, "test": 0})["evaluate"].passed == 120 + 3 * 20


def test_a_batch_is_no_larger_than_the_pictures_that_there_are():
    (training,) = work({"train": 10, "valid": 4, "test": 0})["fine_tune"].trainings
    assert (training.batch_size, training.steps) == (10, 4)


def test_stages_that_the_recipe_leaves_out_are_no_work_and_steps_of_resize_are_stages():
    assert list(work(stages="precompute,lr_find,train_head,evaluate")) == [
        "precompute", "lr_find", "train_head", "evaluate",
    ]  # fmt: skip
    found = work(fine_tune__cycles=0, resize="[{image_px: 64}, {image_px: 96}, {image_px: 128, cycles: 0}]")
    assert list(found)[-4:] == ["lr_find_unfrozen", "resize", "resize 2", "evaluate"]
    assert [found[name].image_px for name in list(found)[-4:]] == [64, 64, 96, 96], (
        "the finder tests what resize trains"
    )
    assert [found[name].opened for name in list(found)[-4:]] == [150, 0, 150, 0]


def test_each_network_of_an_ensemble_has_its_own_work_and_all_are_evaluated():
    one, three = work(), work(seeds=3, seed=7)
    again = [f"{name} seed {seed}" for seed in (8, 9) for name in list(one)[1:-1]]
    assert list(three) == [*list(one)[:-1], *again, "evaluate"]
    assert three["fine_tune seed 9"] == one["fine_tune"]
    assert three["evaluate"].passed == 3 * one["evaluate"].passed
