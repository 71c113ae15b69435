import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.tracking._tracking_service.utils import _get_store

from pipeline import tracking
from pipeline.recipe.recipe_file import override_recipe, read_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs import runner
from pipeline.runs.fingerprint import source_digest
from pipeline.runs.runner import before_first_work, run_stage
from pipeline.runs.served_code import pinned
from pipeline.runs.stage import RECIPE_FILE, Job, Stage
from pipeline.runs.upstream import Upstream
from pipeline.runs.work import new_run
from pipeline.system import device
from pipeline.system.errors import UserError
from pipeline.tracking.artifacts import local_artifacts
from pipeline.tracking.runs import RunRef
from stages import evaluate

RESIZE = Stage("resize", ("resize", "augment"), follows=("fine_tune", "lr_find"), artifacts=("out.txt", "recipe.yaml"))
FINE_TUNE = Stage("fine_tune", ("fine_tune",), artifacts=("out.txt", "recipe.yaml"))
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


@on_a_server
def test_what_is_announced_comes_before_the_first_work_and_not_where_all_is_reused(work):
    events = []

    def note(job: Job) -> None:
        events.append("work")
        work(job)

    def run(**overrides: str) -> RunRef:
        return run_stage(RESIZE, on(recipe_with(**overrides)), INPUTS, note)

    with before_first_work(lambda: events.append("announced")):
        run()
        run(seed="1")
    assert events == ["announced", "work", "work"]
    with before_first_work(lambda: events.append("announced")):
        assert run().reused
    run(seed="2")
    assert events == ["announced", "work", "work", "work"]


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
    assert done.seconds == run.data.metrics["stage_seconds"] > 0
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
        again(recipe_with(compile="true")),
    ]
    assert [run_again(work).reused for run_again in unchanged] == [True] * len(unchanged)


def made_by(device: str, decoder: str) -> Callable[[Job], None]:
    """A stage's work on a machine where the recipe's auto is these."""

    def work_there(job: Job) -> None:
        resolved = {"device": device, "decoder": decoder, "deterministic": "no" if device == "cuda" else "yes"}
        tracking.set_tags(job.run_id, {f"thaw.resolved.{name}": value for name, value in resolved.items()})
        tracking.log_text(job.run_id, "done", "out.txt")

    return work_there


@on_a_server
def test_what_is_left_to_the_machine_may_have_been_another_there_and_is_told(work, capsys):
    first = run_stage(RESIZE, on(Recipe()), INPUTS, made_by("cuda", "nvjpeg"))
    assert run_stage(RESIZE, on(Recipe()), INPUTS, work).run_id == first.run_id
    assert "s on cuda in float32, pictures decoded by nvjpeg)" in capsys.readouterr().out


@on_a_server
@pytest.mark.parametrize("asked", [{"data__decoder": "pillow"}, {"device": "cpu"}, {"deterministic": "true"}])
def test_what_is_asked_for_is_not_taken_from_a_run_that_was_made_otherwise(work, asked):
    run_stage(RESIZE, on(Recipe()), INPUTS, made_by("cuda", "nvjpeg"))
    first = run_stage(RESIZE, on(recipe_with(**asked)), INPUTS, made_by("cpu", "pillow"))
    assert not first.reused
    assert run_stage(RESIZE, on(recipe_with(**asked)), INPUTS, work).run_id == first.run_id
    assert work.calls == 0


@on_a_server
def test_what_the_upstream_run_was_made_by_counts(work):
    one, other = (
        RunRef(UPSTREAM.run_id, "fine_tune", "print", None, resolved={"decoder": decoder})
        for decoder in ("pillow", "nvjpeg")
    )
    run_stage(RESIZE, on(Recipe(), one), INPUTS, work)
    assert not run_stage(RESIZE, on(Recipe(), other), INPUTS, work).reused
    assert run_stage(RESIZE, on(Recipe(), one), INPUTS, work).reused


@on_a_server
def test_another_version_of_a_library_that_makes_the_numbers_runs_a_stage_again(work, monkeypatch):
    real = metadata.version
    for name in runner.LIBRARIES:
        run_stage(RESIZE, on(Recipe()), INPUTS, work)
        major, minor, *_ = real(name).split(".")
        for version, is_reused in ((f"{major}.{minor}.99+cu999", True), (f"{major}.{int(minor) + 1}.0", False)):
            monkeypatch.setattr(metadata, "version", lambda one: version if one == name else real(one))  # noqa: B023
            assert run_stage(RESIZE, on(Recipe()), INPUTS, work).reused == is_reused
        monkeypatch.setattr(metadata, "version", real)


@on_a_server
def test_a_backup_made_by_another_decoder_is_not_resumed_from(monkeypatch):
    folders = []
    for decoder in ("pillow", "nvjpeg", "pillow"):
        monkeypatch.setattr(new_run, "choose_decoder", lambda choice, device: decoder)  # noqa: B023
        with pytest.raises(KeyboardInterrupt):
            run_stage(RESIZE, on(Recipe()), INPUTS, lambda job: _stop(folders, job))
    assert folders[0] == folders[2] != folders[1]


@on_a_server
def test_a_backup_made_in_another_precision_is_not_resumed_from(monkeypatch):
    folders = []
    for has_units in (True, False, True):
        monkeypatch.setattr(device, "has_matrix_units", lambda: has_units)  # noqa: B023
        with pytest.raises(KeyboardInterrupt):
            run_stage(RESIZE, on(Recipe()), INPUTS, lambda job: _stop(folders, job))
    assert folders[0] == folders[2] != folders[1]


@on_a_server
def test_a_stage_works_within_a_block_of_its_device_if_the_result_is_to_be_the_same_each_time(work, monkeypatch):
    blocks = []

    def note(device: torch.device) -> AbstractContextManager[None]:
        blocks.append(device)
        return nullcontext()

    monkeypatch.setattr(new_run, "deterministic", note)
    run_stage(RESIZE, on(Recipe()), INPUTS, work)
    assert not blocks
    done = run_stage(RESIZE, on(recipe_with(deterministic="true", reuse="never")), INPUTS, work)
    assert blocks == [torch.device("cpu")]
    assert tracking.run_of(done.run_id).resolved["deterministic"] == "yes"


def test_several_processes_are_refused_on_a_gpu_where_the_result_is_to_be_the_same_each_time(work, monkeypatch):
    monkeypatch.setattr(new_run, "processes", lambda: 2)
    monkeypatch.setattr(new_run, "device_of", lambda recipe: torch.device("cuda"))
    with pytest.raises(UserError, match="deterministic is true, but 2 processes"):
        new_run._computing(on(recipe_with(deterministic="true")))


def _stop(folders: list[Path], job: Job) -> None:
    folders.append(job.folder)
    raise KeyboardInterrupt


def chain_of_two(work: Callable[[Job], None], recipe: Recipe | None = None) -> tuple[RunRef, RunRef]:
    """A run of fine_tune, and one of resize on it, as main runs them."""
    recipe = recipe or Recipe()
    first = run_stage(FINE_TUNE, Upstream(recipe), INPUTS, work)
    return first, run_stage(RESIZE, on(recipe, first), INPUTS, work)


def delete(run_id: str) -> None:
    MlflowClient().delete_run(run_id)


def delete_for_good(run_id: str) -> None:
    delete(run_id)
    shutil.rmtree(local_artifacts(run_id))
    _get_store()._hard_delete_run(run_id)


def delete_artifact(run_id: str) -> None:
    (local_artifacts(run_id) / "out.txt").unlink()


def cut_artifact_short(run_id: str) -> None:
    (local_artifacts(run_id) / "out.txt").write_text("")


@on_a_server
@pytest.mark.parametrize("lose", [delete, delete_for_good, delete_artifact, cut_artifact_short])
def test_a_stage_that_stands_on_a_run_that_is_gone_is_done_again_and_then_reused(work, lose):
    first, second = chain_of_two(work)
    assert [ref.run_id for ref in chain_of_two(work)] == [first.run_id, second.run_id]
    lose(first.run_id)
    anew = chain_of_two(work)
    assert [ref.reused for ref in anew] == [False, False]
    assert anew[1].upstream == anew[0].run_id
    assert [ref.run_id for ref in chain_of_two(work)] == [ref.run_id for ref in anew]
    assert work.calls == 4


@on_a_server
def test_a_stage_on_another_run_of_the_same_fingerprint_is_reused_while_that_is_there(work):
    first, second = chain_of_two(work)
    twin = run_stage(FINE_TUNE, Upstream(recipe_with(reuse="never")), INPUTS, work)
    assert run_stage(RESIZE, on(Recipe(), twin), INPUTS, work).run_id == second.run_id
    delete(first.run_id)
    assert run_stage(RESIZE, on(Recipe(), twin), INPUTS, work).upstream == twin.run_id


@on_a_server
def test_a_server_that_cannot_answer_is_not_taken_for_one_without_the_run(work, monkeypatch):
    first, _ = chain_of_two(work)
    twin = run_stage(FINE_TUNE, Upstream(recipe_with(reuse="never")), INPUTS, work)
    real = MlflowClient.get_run

    def refuse(client: MlflowClient, run_id: str) -> object:
        if run_id == first.run_id:
            raise MlflowException("not allowed", PERMISSION_DENIED)
        return real(client, run_id)

    monkeypatch.setattr(MlflowClient, "get_run", refuse)
    with pytest.raises(UserError, match="not allowed"):
        run_stage(RESIZE, on(Recipe(), twin), INPUTS, work)


@on_a_server
def test_a_run_whose_upstream_is_gone_cannot_be_built_on_and_that_is_told(work):
    first, second = chain_of_two(work)
    delete_for_good(first.run_id)
    with pytest.raises(UserError, match=f"run {first.run_id} that it follows is gone; run main again"):
        Upstream.of(Stage("evaluate", follows=("resize",)), Recipe(), second.run_id)


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
    served = {"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pinned())}
    assert handed == [served | {"fine_tune_cycles": "1"}]
    monkeypatch.setattr(evaluate, "pinned", lambda: ["torch==0"])
    evaluate.run(Recipe(), UPSTREAM.run_id)
    assert handed[1] == handed[0] | {"served_pins": "torch==0"}
