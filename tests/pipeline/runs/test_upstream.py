from pathlib import Path

import mlflow
import pandas as pd
import pytest

from pipeline import tracking
from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs.runner import run_stage
from pipeline.runs.stage import Job, Stage
from pipeline.runs.upstream import Upstream, chain_from, suggested
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef

RESIZE = Stage("resize", ("resize", "augment"), follows=("fine_tune", "lr_find"))
FINE_TUNE = RunRef("u" * 32, "fine_tune", "print of upstream", None)

on_a_server = pytest.mark.usefixtures("tracking_server")


def leave_its_name(job: Job) -> None:
    tracking.log_text(job.run_id, mlflow.get_run(job.run_id).info.run_name, "out.txt")


def ran(name: str, *upstream: RunRef) -> RunRef:
    return run_stage(Stage(name, ("head",)), Upstream(Recipe(), upstream), {}, leave_its_name)


def after(*stages: str, suggestion: float | None = None) -> Upstream:
    metrics = {} if suggestion is None else {"suggestion/lr": suggestion}
    runs = tuple(RunRef(f"run {number}", name, "", None, metrics) for number, name in enumerate(stages))
    return Upstream(Recipe(), runs)


@on_a_server
def test_a_chain_goes_from_the_upstream_run_back_to_the_first():
    first = ran("precompute")
    second = ran("train_head", first)
    third = ran("fine_tune", second, first)
    up = Upstream.of(RESIZE, Recipe(), third.run_id)
    assert [ref.run_id for ref in up.chain] == [third.run_id, second.run_id, first.run_id]
    assert [ref.stage for ref in up.chain] == ["fine_tune", "train_head", "precompute"]
    assert [ref.run_id for ref in chain_from(second.run_id)] == [second.run_id, first.run_id]
    assert up.folder("out.txt", "precompute").read_text() == "precompute"
    assert up.folder("out.txt", "precompute", "train_head").read_text() == "train_head"
    with pytest.raises(UserError, match=f"resize cannot follow run {first.run_id}, which is a run of precompute; give"):
        Upstream.of(RESIZE, Recipe(), first.run_id)


def test_no_upstream_is_reported_in_a_sentence_that_names_the_stages_to_choose_from():
    with pytest.raises(UserError, match="resize needs an upstream run; give the id of a run of fine_tune or lr_find"):
        Upstream.of(RESIZE, Recipe(), None)


@on_a_server
def test_an_upstream_that_does_not_exist_is_reported_in_a_sentence():
    with pytest.raises(UserError, match="There is no run nonsense"):
        Upstream.of(RESIZE, Recipe(), "nonsense")


def test_the_nearest_run_of_a_stage_is_taken():
    up = after("lr_find", "train_head", "lr_find", "precompute")
    assert up.nearest("lr_find") is up.chain[0]
    assert up.nearest("precompute", "train_head") is up.chain[1]
    with pytest.raises(UserError, match="None of the upstream runs is a run of resize or fine_tune"):
        up.nearest("resize", "fine_tune")


@pytest.mark.parametrize("lr", [0.003, [1e-5, 1e-4, 1e-3]])
def test_a_given_rate_is_taken_whatever_is_suggested(lr):
    assert after("fine_tune").rate(lr, "fine_tune.lr") == lr
    assert after("lr_find", suggestion=9.0).rate(lr, "fine_tune.lr") == lr


def test_auto_is_what_the_upstream_run_of_lr_find_suggests():
    up = after("lr_find", "train_head", suggestion=0.02)
    assert up.rate("auto", "fine_tune.lr") == suggested(up.chain[0]) == 0.02


def test_auto_after_another_stage_is_reported_in_a_sentence_even_with_an_older_suggestion():
    up = after("fine_tune", "lr_find", suggestion=0.02)
    with pytest.raises(UserError, match=r"fine_tune\.lr is auto, but the upstream run .* is of fine_tune; run lr_find"):
        up.rate("auto", "fine_tune.lr")


def test_the_epochs_of_several_runs_are_one_table_with_stage_rate_and_phase(tmp_path: Path, monkeypatch):
    for stage, epochs in (("train_head", (1, 2, 3)), ("fine_tune", (4,))):
        pd.DataFrame({"epoch": epochs, "valid_loss": 0.75}).to_csv(tmp_path / f"{stage}.csv", index=False)
    monkeypatch.setattr(tracking, "artifact", lambda run_id, name: tmp_path / f"{run_id}.csv")
    chain = [
        RunRef(stage, stage, "", None, {"top_rate_head": rate})
        for stage, rate in (("fine_tune", 0.04), ("lr_find", 9.0), ("train_head", 0.01), ("precompute", 9.0))
    ]
    recipe = override_recipe(Recipe(), {"train_head.stored_epochs": "2"})
    joined = Upstream(recipe, tuple(chain)).epochs("train_head", "fine_tune", "resize")
    assert joined["epoch"].tolist() == [1, 2, 3, 4]
    assert joined["phase"].tolist() == ["stored", "stored", "", ""]
    assert joined["stage"].tolist() == ["train_head"] * 3 + ["fine_tune"]
    assert joined["rate"].tolist() == [0.01] * 3 + [0.04]
    assert joined["run_id"].tolist() == ["train_head"] * 3 + ["fine_tune"]
    assert joined["valid_loss"].tolist() == [0.75] * 4
