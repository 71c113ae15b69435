from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline import execute, pins, tracking
from pipeline.contract import Job, RunRef, Stage
from pipeline.errors import UserError
from pipeline.execute import (
    chain_of,
    given_or_suggested,
    nearest,
    run_stage,
    suggested,
    upstream_files,
    upstream_folder,
)
from pipeline.fingerprint import source_digest
from pipeline.recipe import Recipe
from pipeline.recipe_file import override_recipe, read_recipe
from stages import evaluate

RESIZE = Stage("resize", ("resize", "augment"), follows=("fine_tune", "lr_find"), artifacts=("out.txt", "recipe.yaml"))
UPSTREAM = RunRef("u" * 32, "fine_tune", "print of upstream", None)
INPUTS = {"weights": "sha256:1"}

on_a_server = pytest.mark.usefixtures("tracking_server")


class Work:
    """A stage's work that counts its calls and leaves an artifact."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, job: Job) -> None:
        self.calls += 1
        tracking.log_text(job.run_id, str(self.calls), "out.txt")


@pytest.fixture
def work() -> Work:
    return Work()


def recipe_with(**overrides: str) -> Recipe:
    return override_recipe(Recipe(), {key.replace("__", "."): value for key, value in overrides.items()})


def count_runs() -> int:
    return len(MlflowClient().search_runs([mlflow.get_experiment_by_name("test").experiment_id]))


@on_a_server
def test_a_stage_is_run_once_and_then_reused(work, capsys):
    first = run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    runs = count_runs()
    second = run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    assert work.calls == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.run_id == first.run_id
    assert second.fingerprint == first.fingerprint
    assert second.upstream == UPSTREAM.run_id
    assert count_runs() == runs == 1
    assert f"resize: reused run {first.run_id}" in capsys.readouterr().out


@on_a_server
def test_a_stages_run_says_what_it_is_and_holds_its_recipe(work):
    recipe = recipe_with(resize__image_px="64")
    done = run_stage(RESIZE, recipe, [UPSTREAM], INPUTS, work)
    run = MlflowClient().get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.STAGE] == "resize"
    assert run.data.tags[tracking.UPSTREAM] == UPSTREAM.run_id
    assert run.data.tags[tracking.FINGERPRINT] == done.fingerprint
    assert run.data.tags[tracking.DONE] == "true"
    assert done.seconds == run.data.metrics["stage/seconds"] > 0
    assert run.data.params["resize.image_px"] == "64"
    assert {key.split(".")[0] for key in run.data.params} == {"seed", "resize", "augment"}
    assert read_recipe(execute.upstream_recipe(done.run_id)) == recipe


@on_a_server
def test_a_stage_that_is_never_to_be_reused_runs_again(work):
    first = run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    second = run_stage(RESIZE, recipe_with(reuse="never"), [UPSTREAM], INPUTS, work)
    assert work.calls == 2
    assert second.run_id != first.run_id
    assert second.fingerprint == first.fingerprint


@on_a_server
def test_reuse_of_one_run_takes_that_one_and_no_other(work):
    first = run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    run_stage(RESIZE, recipe_with(reuse="never"), [UPSTREAM], INPUTS, work)
    assert run_stage(RESIZE, recipe_with(reuse=first.run_id), [UPSTREAM], INPUTS, work).run_id == first.run_id
    assert work.calls == 2


def again(
    recipe: Recipe | None = None, upstream: RunRef = UPSTREAM, inputs: dict[str, str] = INPUTS
) -> Callable[[Work], RunRef]:
    return lambda work: run_stage(RESIZE, recipe or Recipe(), [upstream], inputs, work)


@on_a_server
def test_whatever_a_stage_depends_on_runs_it_again_and_nothing_else_does(work):
    again()(work)
    changed = [
        again(recipe_with(resize__lr="1e-2")),
        again(recipe_with(augment__zoom="1.2")),
        again(recipe_with(seed="1")),
        again(upstream=RunRef(UPSTREAM.run_id, "fine_tune", "another print", None)),
        again(inputs={"weights": "sha256:2"}),
        again(inputs={}),
    ]
    for number, run_again in enumerate(changed, 2):
        assert not run_again(work).reused
        assert work.calls == number
    unchanged = [
        again(),
        again(recipe_with(resize__lr="0.01")),
        again(recipe_with(fine_tune__cycles="5")),
        again(recipe_with(device="cpu")),
        again(upstream=RunRef("v" * 32, "lr_find", UPSTREAM.fingerprint, None)),
    ]
    assert [run_again(work).reused for run_again in unchanged] == [True] * len(unchanged)


@on_a_server
def test_changed_code_runs_a_stage_again(work, monkeypatch):
    run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    monkeypatch.setattr(execute, "source_digest", lambda module: f"another {module}")
    assert not run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work).reused


@on_a_server
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_work_that_failed_is_done_again_and_cannot_be_built_on(work, error):
    failed = []

    def failing(job: Job) -> None:
        work(job)
        failed.append(job.run_id)
        raise error

    with pytest.raises(error):
        run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, failing)
    with pytest.raises(UserError, match=r"of resize did not finish"):
        tracking.run_of(failed[0])
    assert not run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work).reused
    assert work.calls == 2


@on_a_server
def test_a_stage_without_its_artifacts_runs_again():
    for _ in range(2):
        assert not run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, lambda job: None).reused


@on_a_server
def test_a_reused_stage_under_mlflow_run_leaves_a_finished_run_that_points_at_the_reused_one(work, monkeypatch):
    first = run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    handed = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", handed.info.run_id)
    assert run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work).run_id == first.run_id
    run = MlflowClient().get_run(handed.info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.REUSED] == first.run_id
    assert run.info.run_name == "resize"
    assert first.run_id in run.data.tags["mlflow.note.content"]
    assert tracking.run_of(handed.info.run_id).run_id == first.run_id
    assert work.calls == 1


@on_a_server
def test_under_mlflow_run_a_stage_runs_in_the_run_that_was_made_for_it(work, monkeypatch):
    handed = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", handed.info.run_id)
    assert run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work).run_id == handed.info.run_id


@on_a_server
def test_a_stale_run_of_mlflow_run_is_told_in_a_sentence_before_any_work(work, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match=r"gives no run .*; check MLFLOW_TRACKING_URI"):
        run_stage(RESIZE, Recipe(), [UPSTREAM], INPUTS, work)
    assert work.calls == 0


def test_evaluate_depends_on_the_code_and_the_requirements_of_the_served_model(monkeypatch):
    handed = []
    monkeypatch.setattr(execute, "chain_of", lambda stage, upstream: [UPSTREAM])
    monkeypatch.setattr(execute, "run_stage", lambda stage, recipe, chain, inputs, work: handed.append(inputs))
    evaluate.run(Recipe(), UPSTREAM.run_id)
    assert handed == [{"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pins.pinned())}]
    monkeypatch.setattr(pins, "pinned", lambda: ["torch==0"])
    evaluate.run(Recipe(), UPSTREAM.run_id)
    assert handed[1] == handed[0] | {"served_pins": "torch==0"}


@on_a_server
def test_a_chain_goes_from_the_upstream_run_back_to_the_first(work):
    first = run_stage(Stage("precompute", ("precompute",)), Recipe(), [], {}, work)
    second = run_stage(Stage("train_head", ("head",)), Recipe(), [first], {}, work)
    third = run_stage(Stage("fine_tune", ("fine_tune",)), Recipe(), [second, first], {}, work)
    chain = chain_of(RESIZE, third.run_id)
    assert [ref.run_id for ref in chain] == [third.run_id, second.run_id, first.run_id]
    assert [ref.stage for ref in chain] == ["fine_tune", "train_head", "precompute"]
    assert upstream_folder(chain, "out.txt", "precompute").read_text() == "1"
    files = upstream_files(chain, "out.txt", "fine_tune", "precompute")
    assert [(ref.stage, path.read_text()) for ref, path in files] == [("precompute", "1"), ("fine_tune", "3")]
    with pytest.raises(UserError, match=f"resize cannot follow run {first.run_id}, which is a run of precompute; give"):
        chain_of(RESIZE, first.run_id)


def test_no_upstream_is_told_in_a_sentence_that_names_the_stages_to_choose_from():
    with pytest.raises(UserError, match="resize needs an upstream run; give the id of a run of fine_tune or lr_find"):
        chain_of(RESIZE, None)


@on_a_server
def test_an_upstream_that_is_not_there_is_told_in_a_sentence():
    with pytest.raises(UserError, match="There is no run nonsense"):
        chain_of(RESIZE, "nonsense")


CHAIN = [RunRef(f"run {name}", name, "", None) for name in ("lr_find", "train_head", "lr_find", "precompute")]


def test_the_nearest_run_of_a_stage_is_taken():
    assert nearest(CHAIN, "lr_find") is CHAIN[0]
    assert nearest(CHAIN, "precompute", "train_head") is CHAIN[1]
    with pytest.raises(UserError, match="None of the upstream runs is a run of resize or fine_tune"):
        nearest(CHAIN, "resize", "fine_tune")


@pytest.mark.parametrize("lr", [0.003, [1e-5, 1e-4, 1e-3]])
def test_a_rate_that_is_given_is_taken_whatever_is_suggested(lr):
    assert given_or_suggested(lr, [UPSTREAM], "fine_tune.lr") == lr
    assert given_or_suggested(lr, [RunRef("r", "lr_find", "", None, {"suggestion/lr": 9.0})], "fine_tune.lr") == lr


def test_auto_is_what_the_upstream_run_of_lr_find_suggests():
    chain = [RunRef("r", "lr_find", "", None, {"suggestion/lr": 0.02}), UPSTREAM]
    assert given_or_suggested("auto", chain, "fine_tune.lr") == suggested(chain[0]) == 0.02


def test_auto_after_another_stage_is_told_in_a_sentence_even_with_an_older_suggestion():
    chain = [UPSTREAM, RunRef("r", "lr_find", "", None, {"suggestion/lr": 0.02})]
    with pytest.raises(UserError, match=r"fine_tune\.lr is auto, but the upstream run u+ is of fine_tune; run lr_find"):
        given_or_suggested("auto", chain, "fine_tune.lr")
