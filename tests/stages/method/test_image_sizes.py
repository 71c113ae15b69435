"""The same network goes on at larger sizes: one run for each step of resize, and none for what has no cycles."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import mlflow
import pandas as pd
import pytest

from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef
from stages import fine_tune, main, resize
from stages.registry import STAGES
from tests.drawn_pictures import draw_pictures
from tests.stages.chains import recipe_on
from tests.stages.watching import Notes, watched

SHORT = {"cycles": 1, "cycle_len": 1, "batch_size": 16, "fraction": 0.5}
STEPS = [
    {**SHORT, "image_px": 40, "lr": 1e-3, "gradual_epochs": 1, "drop_path": 0.3},
    {"image_px": 44, "cycles": 0},
    {**SHORT, "image_px": 48, "freeze": "body"},
]


def test_resizing_trains_the_network_on_at_the_larger_size_of_the_recipe(chain):
    assert {step.shape for step in chain["fine_tune"].did.steps} == {(5, 3, 32, 32)}
    assert {step.shape for step in chain["resize"].did.steps} == {(4, 3, 40, 40)}
    assert json.loads((chain["resize"].files / "checkpoint" / "checkpoint.json").read_text())["image_px"] == 40


@dataclass(frozen=True)
class Resized:
    """By main, two steps of resize on a head alone: the `runs` by name, what all of them `did`, and, by the same recipe
    with its first step alone, the runs `with_one_step`."""

    runs: dict[str, RunRef]
    did: Notes
    with_one_step: dict[str, RunRef]
    epochs: pd.DataFrame

    def run(self, name: str) -> mlflow.entities.Run:
        return mlflow.get_run(self.runs[name].run_id)


@pytest.fixture(scope="module")
def resized(fresh_workplace) -> Iterator[Resized]:
    with fresh_workplace().entered() as folder:
        recipe = recipe_on(
            draw_pictures(folder / "pictures"), train_head__cycles=0, train_head__stored_epochs=1, fine_tune__cycles=0,
            resize=STEPS, stages="precompute,train_head,fine_tune,resize",
        )  # fmt: skip
        with watched() as did:
            runs = dict(main.train(recipe))
        with pytest.raises(UserError, match="resize has 2 steps of 1 cycle or more"):
            resize.run(recipe, runs["resize 2"].run_id)
        with pytest.raises(UserError, match=r"fine_tune\.cycles is 0"):
            fine_tune.run(recipe, runs["train_head"].run_id)
        with_one_step = dict(main.train(recipe.model_copy(update={"resize": recipe.resize[:1]})))
        up = Upstream.of(STAGES["evaluate"], recipe, runs["resize 2"].run_id)
        yield Resized(runs, did, with_one_step, up.epochs("train_head", "resize"))


def test_each_step_is_a_run_on_the_one_before_it_and_those_without_cycles_are_left_out(resized):
    names, refs = list(resized.runs), list(resized.runs.values())
    assert names == ["precompute", "train_head", "resize", "resize 2"]
    assert [resized.run(name).info.run_name for name in names] == names
    assert [ref.upstream for ref in refs] == [None, *(ref.run_id for ref in refs[:-1])]
    assert list(dict.fromkeys(step.shape[-1] for step in resized.did.steps if len(step.shape) == 4)) == [40, 48]
    assert [resized.run(name).data.params["resize.image_px"] for name in ("resize", "resize 2")] == ["40", "48"]


def test_a_step_without_a_rate_of_its_own_takes_that_of_the_step_before(resized):
    assert [resized.run(name).data.metrics["top_rate_head"] for name in ("resize", "resize 2")] == [1e-3, 1e-3]


def test_the_counters_of_epochs_and_steps_go_on_over_the_steps_which_are_told_apart(resized):
    epochs = resized.epochs
    assert epochs["epoch"].tolist() == [1, 2, 3, 4]
    assert epochs["step"].is_monotonic_increasing
    assert epochs["stage"].tolist() == ["train_head", "resize", "resize", "resize 2"]
    assert epochs["rate_key"].tolist() == ["train_head.lr", "resize.0.lr", "resize.0.lr", "resize.1.lr"]
    assert pd.notna(epochs["rate"]).all()


def test_the_body_is_thawed_group_by_group_and_its_blocks_are_skipped_if_asked_to(resized):
    first = [step for step in resized.did.steps if step.shape[-1] == 40 and len(step.shape) == 4]
    second = [step for step in resized.did.steps if step.shape[-1] == 48]
    assert list(dict.fromkeys(tuple(step.rates) for step in first)) == [("head",), ("late", "head")]
    assert all(max(step.drop_paths) == pytest.approx(0.3) for step in first)
    assert {step.drop_paths for step in second} == {()}


def test_a_step_does_not_depend_on_those_after_it(resized):
    assert list(resized.with_one_step) == ["precompute", "train_head", "resize"]
    for name, ref in resized.with_one_step.items():
        assert ref.run_id == resized.runs[name].run_id
