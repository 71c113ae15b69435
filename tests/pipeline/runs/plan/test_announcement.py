from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from pipeline.recipe.presets import read_preset
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training_sections import FineTune, Resize, TrainingOptions
from pipeline.runs.plan import estimate
from pipeline.runs.plan.announcement import announced, describe_plan
from pipeline.runs.plan.estimate import OVERHEAD_SECONDS, seconds_of
from pipeline.runs.plan.work import StageWork, Training, work_of
from pipeline.runs.runner import _announce
from pipeline.system.console import say
from pipeline.tracking import RunRef

RECIPE = Recipe(device="cpu", fine_tune=FineTune(cycles=0), resize=[Resize(image_px=224), Resize(image_px=300)])
WORKS = work_of(RECIPE, {"train": 100, "valid": 20, "test": 30})


class Speeds:
    """Of a machine that is twice as slow as the reference, with round figures for the rest."""

    core = 2.0

    def __init__(self, *given):
        pass

    def opening(self, image_px):
        return 0.1

    def passing(self, image_px, passes):
        return 0.01

    def validating(self, training):
        return 0.5

    def step(self, training):
        return 3.0

    def head_step(self, batch_size):
        return 0.2


def manifest():
    rows = {"train": 100, "valid": 20, "test": 30}
    return SimpleNamespace(rows=lambda split: pd.RangeIndex(rows[split]), classes=["a", "b"])


def ref(name):
    return RunRef("1", name, "", None, reused=True)


@pytest.fixture
def speeds(monkeypatch):
    monkeypatch.setattr(estimate, "Probe", Speeds)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (StageWork(64), 0.0),
        (StageWork(64, opened=10), 1.0),
        (StageWork(64, passed=100), 1.0),
        (StageWork(64, head_steps=5, head_batch_size=8), 1.0),
        (StageWork(64, trainings=(Training("none", 64, 8, 2), Training("early", 64, 8, 1, 4))), 9.0 + 2.0),
    ],
)
def test_a_stage_takes_what_each_of_its_parts_takes_and_its_overhead(work, seconds):
    assert seconds_of("fine_tune", work, Speeds()) == pytest.approx(2 * OVERHEAD_SECONDS["fine_tune"] + seconds)
    assert seconds_of("resize 2", work, Speeds()) == pytest.approx(2 * OVERHEAD_SECONDS["resize"] + seconds)


def test_what_processes_share_takes_each_of_them_its_part(monkeypatch):
    work = StageWork(
        64, opened=10, passed=100, head_steps=5, head_batch_size=8, trainings=(Training("none", 64, 8, 2),)
    )
    alone = seconds_of("resize", work, Speeds())
    monkeypatch.setattr(estimate, "processes", lambda: 2)
    assert alone - seconds_of("resize", work, Speeds()) == pytest.approx((1.0 + 1.0 + 6.0) / 2)


def test_the_plan_is_one_line_with_the_network_the_device_the_sizes_the_times_and_what_is_reused():
    expected = {"train_head": 4.2, "lr_find_unfrozen": 130.0, "resize": 700.0, "resize 2": 9000.0, "evaluate": 59.0}
    done = {"precompute": ref("precompute"), "lr_find": ref("lr_find")}
    assert describe_plan(RECIPE, WORKS, done, expected, "cpu") == (
        "tf_efficientnet_lite0 on cpu, about 2.7 h: precompute (320 px) reused, lr_find reused, train_head 4 s, "
        "lr_find_unfrozen 2.2 min, resize (224 px) 12 min, resize 2 (300 px) 2.5 h, evaluate 59 s"
    )


@pytest.mark.parametrize(
    ("asked", "computed_by"), [("bfloat16", "cpu (trained in bfloat16)"), ("float32", "cpu"), ("auto", "cpu")]
)
def test_the_device_is_said_with_the_precision_that_networks_are_trained_in(asked, computed_by):
    assert estimate.computed_by(RECIPE.model_copy(update={"training": TrainingOptions(precision=asked)})) == computed_by


def test_the_plan_is_said_before_the_first_work_and_before_what_was_said_until_then(speeds, capsys):
    done = {}
    with announced(RECIPE, manifest(), done) as expected:
        done["precompute"] = ref("precompute")
        say("precompute: reused run 1")
        assert capsys.readouterr().out == ""
        _announce.get()()
        first, second = capsys.readouterr().out.splitlines()
        assert "precompute (320 px) reused, lr_find " in first
        assert second == "precompute: reused run 1"
        assert set(expected) == {"lr_find", "train_head", "lr_find_unfrozen", "resize", "resize 2", "evaluate"}
        assert expected["lr_find"] == pytest.approx(2 * OVERHEAD_SECONDS["lr_find"] + 90 * 0.2)
        _announce.get()()
        say("lr_find: started")
        assert capsys.readouterr().out == "lr_find: started\n"
    assert capsys.readouterr().out == ""


def test_where_there_are_few_pictures_of_a_class_the_recipe_for_them_is_named_first(speeds, capsys):
    recipe = read_preset("good", "photos/", {"data": "photos/", "device": "cpu"})
    few = SimpleNamespace(rows=lambda split: pd.RangeIndex(40), classes=["a", "b"])
    for pictures in (few, manifest()):
        with announced(recipe, pictures, {}):
            pass
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "20 training pictures a class; for fewer than 30 there is -P recipe=recipes/tiny.yaml." in lines[0]


def test_trying_leaves_the_random_state_as_it_was(monkeypatch):
    class Drawing(Speeds):
        def __init__(self, *given):
            torch.rand(3)

    monkeypatch.setattr(estimate, "Probe", Drawing)
    state = torch.get_rng_state()
    with announced(RECIPE, manifest(), {}) as expected:
        _announce.get()()
        assert expected
    assert torch.equal(torch.get_rng_state(), state)


def test_where_all_is_reused_nothing_is_tried_and_the_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "Probe", None)
    done = {}
    with announced(RECIPE, manifest(), done) as expected:
        done |= {name: ref(name) for name in WORKS}
        say("evaluate: reused run 1")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("resize 2 (300 px) reused, evaluate reused")
    assert first.startswith("tf_efficientnet_lite0: precompute")
    assert (second, expected) == ("evaluate: reused run 1", {})


def test_what_cannot_be_tried_is_no_reason_to_stop(monkeypatch, capsys):
    def fail(*given):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(estimate, "Probe", fail)
    with announced(RECIPE, manifest(), {}):
        _announce.get()()
    assert capsys.readouterr().out == (
        "tf_efficientnet_lite0 on cpu: precompute (320 px), lr_find, train_head, lr_find_unfrozen, resize (224 px), "
        "resize 2 (300 px), evaluate\n"
    )


def test_what_was_held_back_is_said_where_the_first_stage_fails(speeds, capsys):
    def fail():
        with announced(RECIPE, manifest(), {}):
            say("a sentence")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capsys.readouterr().out == "a sentence\n"


def test_every_stage_of_main_has_an_overhead():
    assert {name.split()[0] for name in work_of(Recipe(), {"train": 9, "valid": 9, "test": 9})} == set(OVERHEAD_SECONDS)


def test_further_networks_of_an_ensemble_are_one_part_of_the_line():
    recipe = RECIPE.model_copy(update={"seeds": 3})
    works = work_of(recipe, {"train": 100, "valid": 20, "test": 30})
    expected = dict.fromkeys((name for name in works if name != "precompute"), 10.0)
    line = describe_plan(recipe, works, {"precompute": ref("precompute")}, expected)
    assert ", resize 2 (300 px) 10 s, 2 more networks 100 s, evaluate 10 s" in line.replace("1.7 min", "100 s")
    assert " seed " not in line
    reused = describe_plan(recipe, works, {name: ref(name) for name in works}, {})
    assert ", 2 more networks reused, evaluate reused" in reused
