from collections.abc import Callable

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.recipe.recipe_file import override_recipe, read_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs import runner
from pipeline.runs.fingerprint import source_digest
from pipeline.runs.publish import pinned
from pipeline.runs.runner import Job, run_stage
from pipeline.runs.stage import RECIPE_FILE, Stage
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from pipeline.tracking.runs import RunRef
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


def on(recipe: Recipe, upstream: RunRef = UPSTREAM) -> Upstream:
    return Upstream(recipe, (upstream,))


def count_runs() -> int:
    return len(MlflowClient().search_runs([mlflow.get_experiment_by_name("test").experiment_id]))


@on_a_server
def test_a_stage_is_run_once_and_then_reused(work, capsys):
    first = run_stage(RESIZE, on(Recipe()), INPUTS, work)
    runs = count_runs()
    second = run_stage(RESIZE, on(Recipe()), INPUTS, work)
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
    done = run_stage(RESIZE, on(recipe), INPUTS, work)
    run = MlflowClient().get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.STAGE] == "resize"
    assert run.data.tags[tracking.UPSTREAM] == UPSTREAM.run_id
    assert run.data.tags[tracking.FINGERPRINT] == done.fingerprint
    assert run.data.tags[tracking.DONE] == "true"
    assert done.seconds == run.data.metrics["stage/seconds"] > 0
    assert run.data.params["resize.image_px"] == "64"
    assert {key.split(".")[0] for key in run.data.params} == {"seed", "resize", "augment"}
    assert read_recipe(tracking.artifact(done.run_id, RECIPE_FILE)) == recipe


@on_a_server
def test_a_stage_that_is_never_to_be_reused_runs_again(work):
    first = run_stage(RESIZE, on(Recipe()), INPUTS, work)
    second = run_stage(RESIZE, on(recipe_with(reuse="never")), INPUTS, work)
    assert work.calls == 2
    assert second.run_id != first.run_id
    assert second.fingerprint == first.fingerprint


@on_a_server
def test_reuse_of_one_run_takes_that_one_and_no_other(work):
    first = run_stage(RESIZE, on(Recipe()), INPUTS, work)
    run_stage(RESIZE, on(recipe_with(reuse="never")), INPUTS, work)
    assert run_stage(RESIZE, on(recipe_with(reuse=first.run_id)), INPUTS, work).run_id == first.run_id
    assert work.calls == 2


def again(
    recipe: Recipe | None = None, upstream: RunRef = UPSTREAM, inputs: dict[str, str] = INPUTS
) -> Callable[[Work], RunRef]:
    return lambda work: run_stage(RESIZE, on(recipe or Recipe(), upstream), inputs, work)


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
    run_stage(RESIZE, on(Recipe()), INPUTS, work)
    monkeypatch.setattr(runner, "source_digest", lambda module: f"another {module}")
    assert not run_stage(RESIZE, on(Recipe()), INPUTS, work).reused


@on_a_server
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_work_that_failed_is_done_again_and_cannot_be_built_on(work, error):
    failed = []

    def failing(job: Job) -> None:
        work(job)
        failed.append(job.run_id)
        raise error

    with pytest.raises(error):
        run_stage(RESIZE, on(Recipe()), INPUTS, failing)
    with pytest.raises(UserError, match=r"of resize did not finish"):
        tracking.run_of(failed[0])
    assert not run_stage(RESIZE, on(Recipe()), INPUTS, work).reused
    assert work.calls == 2


@on_a_server
def test_a_stage_without_its_artifacts_runs_again():
    for _ in range(2):
        assert not run_stage(RESIZE, on(Recipe()), INPUTS, lambda job: None).reused


@on_a_server
def test_a_reused_stage_under_mlflow_run_leaves_a_finished_run_that_points_at_the_reused_one(work, monkeypatch):
    first = run_stage(RESIZE, on(Recipe()), INPUTS, work)
    handed = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", handed.info.run_id)
    assert run_stage(RESIZE, on(Recipe()), INPUTS, work).run_id == first.run_id
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
    assert run_stage(RESIZE, on(Recipe()), INPUTS, work).run_id == handed.info.run_id


@on_a_server
def test_a_stale_run_of_mlflow_run_is_told_in_a_sentence_before_any_work(work, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match=r"gives no run .*; check MLFLOW_TRACKING_URI"):
        run_stage(RESIZE, on(Recipe()), INPUTS, work)
    assert work.calls == 0


def test_evaluate_depends_on_the_code_and_the_requirements_of_the_served_model(monkeypatch):
    handed = []
    monkeypatch.setattr(tracking, "run_of", lambda run_id: UPSTREAM)
    monkeypatch.setattr(evaluate, "run_stage", lambda stage, up, inputs, work: handed.append(inputs))
    evaluate.run(Recipe(), UPSTREAM.run_id)
    assert handed == [{"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pinned())}]
    monkeypatch.setattr(evaluate, "pinned", lambda: ["torch==0"])
    evaluate.run(Recipe(), UPSTREAM.run_id)
    assert handed[1] == handed[0] | {"served_pins": "torch==0"}
