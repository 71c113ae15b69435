"""Any number of sizes, one run each, and parts of main."""

import mlflow
import pandas as pd
import pytest

from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from stages import fine_tune, main, resize
from stages.registry import STAGES
from tests.stages.wiring import draw_pictures, recipe_on, watched

STEPS = [
    {
        "image_px": 40,
        "cycles": 1,
        "cycle_len": 1,
        "batch_size": 16,
        "lr": 1e-3,
        "fraction": 0.5,
        "gradual_epochs": 1,
        "drop_path": 0.3,
    },
    {"image_px": 44, "cycles": 0},
    {"image_px": 48, "cycles": 1, "cycle_len": 1, "batch_size": 16, "freeze": "body", "fraction": 0.5},
]


@pytest.fixture(scope="module")
def sizes(own_server):
    """The recipe, the runs of its stages by name, and what was done; fine_tune has no cycles."""
    with own_server() as folder:
        recipe = recipe_on(
            draw_pictures(folder / "pictures"), train_head__cycles=0, train_head__stored_epochs=1, fine_tune__cycles=0,
            resize=STEPS, stages="precompute,train_head,fine_tune,resize",
        )  # fmt: skip
        with watched() as seen:
            done = dict(main.train(recipe))
        with pytest.raises(UserError, match="resize has 2 steps of 1 cycle or more"):
            resize.run(recipe, done["resize 2"].run_id)
        with pytest.raises(UserError, match=r"fine_tune\.cycles is 0"):
            fine_tune.run(recipe, done["train_head"].run_id)
        again = dict(main.train(recipe.model_copy(update={"resize": recipe.resize[:1]})))
        runs = {name: mlflow.get_run(ref.run_id) for name, ref in done.items()}
        epochs = Upstream.of(STAGES["evaluate"], recipe, done["resize 2"].run_id).epochs("train_head", "resize")
        yield done, runs, seen, again, epochs


def test_each_step_is_a_run_on_the_one_before_it_and_those_without_cycles_are_left_out(sizes):
    done, runs, seen, _, _ = sizes
    assert list(done) == ["precompute", "train_head", "resize", "resize 2"]
    assert [run.info.run_name for run in runs.values()] == list(done)
    assert [ref.upstream for ref in done.values()] == [None, *(ref.run_id for ref in list(done.values())[:-1])]
    assert list(dict.fromkeys(step.shape[-1] for step in seen.steps if len(step.shape) == 4)) == [40, 48]
    assert [runs[name].data.params["resize.image_px"] for name in ("resize", "resize 2")] == ["40", "48"]
    assert runs["resize 2"].data.metrics["top_rate_head"] == 1e-3


def test_the_counters_of_epochs_and_steps_go_on_over_the_steps_which_are_told_apart(sizes):
    _, _, _, _, epochs = sizes
    assert epochs["epoch"].tolist() == [1, 2, 3, 4]
    assert epochs["step"].is_monotonic_increasing
    assert epochs["stage"].tolist() == ["train_head", "resize", "resize", "resize 2"]
    assert epochs["rate_key"].tolist() == ["train_head.lr", "resize.0.lr", "resize.0.lr", "resize.1.lr"]
    assert pd.notna(epochs["rate"]).all()


def test_the_body_is_thawed_group_by_group_and_its_blocks_are_skipped_if_asked_to(sizes):
    _, _, seen, _, _ = sizes
    first = [step for step in seen.steps if step.shape[-1] == 40 and len(step.shape) == 4]
    second = [step for step in seen.steps if step.shape[-1] == 48]
    assert list(dict.fromkeys(tuple(step.rates) for step in first)) == [("head",), ("late", "head")]
    assert all(max(step.drop_paths) == pytest.approx(0.3) for step in first)
    assert {step.drop_paths for step in second} == {()}


def test_a_step_does_not_depend_on_those_after_it(sizes):
    done, _, _, again, _ = sizes
    assert {name: ref.run_id for name, ref in again.items()} == {name: done[name].run_id for name in again}
    assert list(again) == ["precompute", "train_head", "resize"]
