import shutil
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline import tracking
from pipeline.cache.store import describe
from pipeline.system.errors import UserError
from pipeline.tracking import artifacts, copy_curves, find_done, nested_in, open_run, run_of, runs
from pipeline.tracking.values import LONGEST_TAG, METRICS_PER_CALL, PARAMS_PER_CALL

pytestmark = pytest.mark.usefixtures("tracking_server")

ARTIFACTS = ("checkpoint", "recipe.yaml")


def look_up(run_id: str) -> Run:
    return MlflowClient().get_run(run_id)


def all_runs() -> list[Run]:
    return MlflowClient().search_runs([mlflow.get_experiment_by_name("test").experiment_id])


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, name)]


def make_run(
    fingerprint: str = "f",
    *,
    done: bool = True,
    artifacts: tuple[str, ...] = ARTIFACTS,
    error: BaseException | None = None,
) -> str:
    """A run of resize that is over, with these artifacts, broken off by `error` as its very last act."""
    with open_run("resize", {tracking.STAGE: "resize", tracking.FINGERPRINT: fingerprint}, {}) as run_id:
        for place in artifacts:
            tracking.log_text(run_id, "{}", f"{place}/facts.json" if place == "checkpoint" else place)
        if done:
            tracking.mark_done(run_id, 1.5)
        if error is not None:
            raise error
    return run_id


def artifacts_of(run_id: str) -> Path:
    return Path(look_up(run_id).info.artifact_uri.removeprefix("file://"))


def test_a_run_that_comes_to_its_end_is_finished_with_its_tags_and_params():
    with open_run("resize", {"thaw.stage": "resize"}, {"resize.image_px": 64, "evaluate.register_as": ""}) as run_id:
        assert tracking.is_open()
        assert look_up(run_id).info.status == "RUNNING"
    run = look_up(run_id)
    assert not tracking.is_open()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "resize")
    assert run.data.tags["thaw.stage"] == "resize"
    assert run.data.params == {"resize.image_px": "64", "evaluate.register_as": ""}
    assert tracking.REASON not in run.data.tags


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "KILLED", "stopped by Ctrl-C or SIGTERM"),
        (UserError("The rate is too high."), "FAILED", "The rate is too high."),
        (ValueError(), "FAILED", "ValueError"),
        (SystemExit("gone"), "FAILED", "gone"),
        (RuntimeError("x" * 10_000), "FAILED", "x" * LONGEST_TAG),
    ],
    ids=["Ctrl-C", "a mistake", "an error without words", "an exit", "an error of many words"],
)
def test_a_run_that_breaks_off_says_how_and_why_and_the_error_goes_on(error, status, reason):
    with pytest.raises(type(error)) as caught, open_run("resize", {}, {}):
        raise error
    assert caught.value is error
    assert not tracking.is_open()
    (run,) = all_runs()
    assert run.info.status == status
    assert run.data.tags[tracking.REASON] == reason


def test_ctrl_c_in_a_nested_run_ends_both_as_killed():
    with pytest.raises(KeyboardInterrupt) as stop, open_run("main", {}, {}), open_run("resize", {}, {}):
        raise KeyboardInterrupt
    assert stop.value.__notes__  # by which the command line knows that a run was marked
    assert [run.info.status for run in all_runs()] == ["KILLED", "KILLED"]


def test_a_run_within_an_open_one_is_nested_in_it():
    with open_run("main", {}, {}) as outer:
        with open_run("resize", {}, {}) as inner:
            pass
        assert mlflow.active_run().info.run_id == outer
    assert look_up(inner).data.tags["mlflow.parentRunId"] == outer
    assert "mlflow.parentRunId" not in look_up(outer).data.tags


def test_a_run_is_nested_in_one_that_another_process_has_open():
    with open_run("sweep", {}, {}) as outer:
        pass
    with nested_in(outer), open_run("seed", {}, {}) as inner, open_run("resize", {}, {}) as innermost:
        pass
    with open_run("main", {}, {}) as later:
        pass
    parents = [look_up(one).data.tags.get("mlflow.parentRunId") for one in (inner, innermost, later)]
    assert parents == [outer, inner, None]


def test_the_machine_is_measured_for_a_run_unless_those_nested_in_it_are(monkeypatch):
    measured = []

    @contextmanager
    def note(run_id, log, first_step):
        measured.append(run_id)
        yield

    monkeypatch.setattr(runs, "system_metrics", note)
    with open_run("main", {}, {}, is_measured=False), open_run("resize", {}, {}) as inner:
        pass
    assert measured == [inner]


def test_the_run_that_mlflow_run_made_is_taken_over_and_its_params_stay_as_they_were_typed(monkeypatch):
    client = MlflowClient()
    handed = client.create_run(mlflow.get_experiment_by_name("test").experiment_id, run_name="by the CLI")
    client.log_param(handed.info.run_id, "resize.lr", "1e-3")
    monkeypatch.setenv("MLFLOW_RUN_ID", handed.info.run_id)
    with open_run("resize", {"thaw.stage": "resize"}, {"resize.lr": 0.001, "seed": 0}) as run_id:
        assert run_id == handed.info.run_id
    run = look_up(run_id)
    assert run.data.params == {"resize.lr": "1e-3", "seed": "0"}
    assert (run.info.status, run.info.run_name) == ("FINISHED", "by the CLI")
    assert run.data.tags["thaw.stage"] == "resize"


def test_runs_nested_in_the_one_that_mlflow_run_made_are_runs_of_their_own(monkeypatch):
    handed = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", handed.info.run_id)
    with open_run("main", {tracking.STAGE: "main"}, {"seed": 0}) as outer:
        nested = []
        for stage in ("precompute", "resize"):
            with open_run(stage, {tracking.STAGE: stage}, {"seed": 0}) as inner:
                nested.append(inner)
            assert mlflow.active_run().info.run_id == outer
            assert look_up(outer).info.status == "RUNNING"
    assert outer == handed.info.run_id
    assert len({outer, *nested}) == 3
    assert look_up(outer).data.tags[tracking.STAGE] == "main"
    assert [look_up(inner).data.tags[tracking.STAGE] for inner in nested] == ["precompute", "resize"]
    assert [look_up(inner).data.tags["mlflow.parentRunId"] for inner in nested] == [outer, outer]
    assert {run.info.status for run in all_runs()} == {"FINISHED"}


def test_a_run_that_cannot_be_had_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match=r"gives no run .*; check MLFLOW_TRACKING_URI"), open_run("resize", {}, {}):
        pass


def test_more_params_than_a_call_takes_are_all_logged():
    params = {f"key{number}": number for number in range(PARAMS_PER_CALL + 20)}
    with open_run("resize", {}, params) as run_id:
        pass
    assert look_up(run_id).data.params == {key: str(value) for key, value in params.items()}


def test_a_long_tag_is_cut_to_what_the_server_takes():
    with open_run("resize", {"long": "x" * (LONGEST_TAG + 1)}, {}) as run_id:
        tracking.describe_run(run_id, "y" * 20_000)
    assert look_up(run_id).data.tags["long"] == "x" * LONGEST_TAG
    assert look_up(run_id).data.tags["mlflow.note.content"] == "y" * LONGEST_TAG


def test_more_points_than_a_call_takes_are_all_logged():
    number = METRICS_PER_CALL + 5
    with open_run("resize", {}, {}) as run_id:
        tracking.log_points(run_id, ((f"lr/{step % 2}", step / 10, step) for step in range(number)))
    assert history(run_id, "lr/0") + history(run_id, "lr/1") == [
        (step, step / 10) for first in (0, 1) for step in range(first, number, 2)
    ]


def test_metrics_are_logged_at_their_step():
    with open_run("resize", {}, {}) as run_id:
        tracking.log_metrics(run_id, {"valid/loss": 0.5, "valid/accuracy": 0.9}, step=70)
    assert history(run_id, "valid/loss") == [(70, 0.5)]
    assert history(run_id, "valid/accuracy") == [(70, 0.9)]


def test_curves_are_copied_with_every_point_and_step_and_nothing_else_is():
    with open_run("resize", {}, {}) as source:
        tracking.log_points(source, [("train/loss", 1 / step, step) for step in (1, 5, 9)])
        tracking.log_points(source, [("lr/head", 0.1, 5), ("system/cpu", 3.0, 1), ("stage_seconds", 2.0, 0)])
    with open_run("main", {}, {}) as target:
        tracking.log_points(target, [("train/loss", 2.0, 0)])
        copy_curves(source, target, ("train/", "lr/", "absent/"))
    assert sorted(history(target, "train/loss")) == [(0, 2.0), (1, 1.0), (5, 1 / 5), (9, 1 / 9)]
    assert history(target, "lr/head") == [(5, 0.1)]
    assert set(look_up(target).data.metrics) == {"train/loss", "lr/head"}


def test_a_finished_run_that_was_marked_done_is_found_with_all_that_is_known_of_it():
    with open_run(
        "resize", {tracking.STAGE: "resize", tracking.FINGERPRINT: "f", tracking.UPSTREAM: "u"}, {}
    ) as run_id:
        for place in ARTIFACTS:
            tracking.log_text(run_id, "{}", place)
        tracking.log_metrics(run_id, {"best_valid_loss": 0.25}, step=3)
        done = tracking.mark_done(run_id, 12.5)
    assert (done.run_id, done.stage, done.fingerprint, done.upstream) == (run_id, "resize", "f", "u")
    assert (done.seconds, done.reused, done.metrics["best_valid_loss"]) == (12.5, False, 0.25)
    found = find_done("f", ARTIFACTS)
    assert found.reused
    assert (found.run_id, found.seconds, found.upstream) == (run_id, 12.5, "u")
    assert found.metrics["best_valid_loss"] == 0.25


def test_a_run_that_was_not_marked_done_is_never_reused():
    make_run(done=False)
    assert find_done("f", ARTIFACTS) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()], ids=repr)
def test_a_run_that_was_marked_done_but_did_not_finish_is_never_reused(error):
    with pytest.raises(type(error)):
        make_run(error=error)
    assert [run.data.tags[tracking.DONE] for run in all_runs()] == ["true"]
    assert find_done("f", ARTIFACTS) is None


def test_a_run_that_is_still_open_is_never_reused():
    with open_run("resize", {tracking.STAGE: "resize", tracking.FINGERPRINT: "f"}, {}) as run_id:
        tracking.mark_done(run_id, 1.0)
        assert find_done("f", ()) is None


def test_a_run_with_another_fingerprint_is_never_reused():
    make_run("f")
    assert find_done("g", ARTIFACTS) is None


def test_a_deleted_run_is_never_reused():
    MlflowClient().delete_run(make_run())
    assert find_done("f", ARTIFACTS) is None


def test_a_run_whose_artifacts_are_gone_is_passed_over_for_an_older_one_that_has_them():
    older, newer = make_run(), make_run()
    shutil.rmtree(artifacts_of(newer) / "checkpoint")
    assert find_done("f", ARTIFACTS).run_id == older
    shutil.rmtree(artifacts_of(older))
    assert find_done("f", ARTIFACTS) is None


def test_of_several_runs_the_latest_is_taken():
    runs = [make_run() for _ in range(3)]
    assert find_done("f", ARTIFACTS).run_id == runs[-1]


def test_within_a_run_only_itself_and_its_nested_runs_are_taken():
    with open_run("main", {}, {}) as parent:
        nested = make_run()
        with open_run("seed 1", {}, {}) as inner:
            deeper = make_run()
    alone = make_run()
    assert find_done("f", ARTIFACTS, within=parent).run_id == deeper
    assert find_done("f", ARTIFACTS, within=inner).run_id == deeper
    assert find_done("f", ARTIFACTS, within=nested).run_id == nested
    assert find_done("f", ARTIFACTS, within=alone).run_id == alone
    with open_run("other", {}, {}) as other:
        pass
    assert find_done("f", ARTIFACTS, within=other) is None


def test_runs_of_another_experiment_are_not_taken(monkeypatch):
    make_run()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment("another"))
    assert find_done("f", ARTIFACTS) is None


def test_the_experiment_of_the_run_handed_over_is_searched(monkeypatch):
    done = make_run()
    handed = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_RUN_ID", handed.info.run_id)
    assert find_done("f", ARTIFACTS).run_id == done


@pytest.mark.parametrize("run_id", ["0" * 32, "nonsense", "../..", "a'b"])
def test_a_run_that_is_not_there_is_told_in_a_sentence(run_id):
    with pytest.raises(UserError, match=r"There is no run .*; copy the id of an upstream run from its page"):
        run_of(run_id)


def test_a_run_that_is_of_no_stage_is_told_in_a_sentence():
    with open_run("by hand", {}, {}) as run_id:
        pass
    with pytest.raises(UserError, match=f"The run {run_id} is no run of a stage; give the id of one of its nested"):
        run_of(run_id)


def test_a_run_that_did_not_finish_cannot_be_built_on():
    run_id = make_run(done=False)
    with pytest.raises(UserError, match=f"The run {run_id} of resize did not finish .*; run it again first"):
        run_of(run_id)


def test_a_finished_run_is_looked_up_by_its_id():
    run_id = make_run()
    found = run_of(run_id)
    assert (found.run_id, found.stage, found.fingerprint, found.seconds) == (run_id, "resize", "f", 1.5)
    assert not found.reused


def test_a_run_that_stands_for_a_reused_one_leads_to_that_one():
    reused = make_run()
    with open_run("resize", {tracking.STAGE: "resize", tracking.REUSED: reused}, {}) as run_id:
        pass
    assert run_of(run_id).run_id == reused


def test_artifacts_on_this_machine_are_read_where_they_lie(cache, tmp_path):
    (tmp_path / "made" / "inner").mkdir(parents=True)
    (tmp_path / "made" / "inner" / "facts.json").write_text("[1]")
    with open_run("resize", {}, {}) as run_id:
        tracking.log_folder(run_id, tmp_path / "made", "checkpoint")
        tracking.log_text(run_id, "seed: 0", "recipe.yaml")
    folder = tracking.artifact(run_id, "checkpoint")
    assert folder == artifacts_of(run_id) / "checkpoint"
    assert (folder / "inner" / "facts.json").read_text() == "[1]"
    assert tracking.artifact(run_id, "recipe.yaml").read_text() == "seed: 0"
    assert not (cache / "artifacts").exists()


def test_artifacts_elsewhere_are_fetched_once_and_kept(monkeypatch, cache):
    run_id = make_run()
    monkeypatch.setattr(artifacts, "local_artifacts", lambda run_id: None)
    folder = tracking.artifact(run_id, "checkpoint")
    assert folder.is_relative_to(cache)
    shutil.rmtree(artifacts_of(run_id))
    assert tracking.artifact(run_id, "checkpoint") == folder
    assert (folder / "facts.json").read_text() == "{}"


def test_an_artifact_that_is_gone_is_told_in_a_sentence_and_leaves_nothing_behind(cache):
    run_id = make_run(artifacts=())
    with pytest.raises(UserError, match=f"artifact checkpoint of run {run_id} cannot be fetched .*; run that stage"):
        tracking.artifact(run_id, "checkpoint")
    assert [path.suffix for path in (cache / "artifacts").rglob("*") if path.is_file()] in ([], [".lock"])


def test_a_reason_is_tagged_where_it_can_be_and_is_no_error_where_it_cannot():
    run_id = make_run()
    tracking.tag_reason(run_id, "The recipe is wrong.")
    assert look_up(run_id).data.tags[tracking.REASON] == "The recipe is wrong."
    tracking.tag_reason("0" * 32, "The recipe is wrong.")


def test_the_pictures_are_an_input_of_the_run_by_content_digest(tmp_path):
    digest = "0123456789" * 6
    with open_run("precompute", {}, {}) as run_id:
        tracking.log_dataset("farm", tmp_path, digest, "training")
    (logged,) = look_up(run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("farm", digest[:36])
    assert str(tmp_path) in logged.dataset.source
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "training")]


def test_a_page_shows_the_result_of_another_run(tmp_path):
    (tmp_path / "report.html").write_text("well done")
    with tracking.open_run("evaluate", {tracking.DESCRIPTION: "Good.", "thaw.stage": "evaluate"}, {}) as source:
        MlflowClient().log_artifact(source, str(tmp_path / "report.html"))
        tracking.log_dataset("cells", tmp_path, "d" * 64, "test")
    with tracking.open_run("main", {}, {}) as target:
        tracking.show_result(source, target, ["report.html"])
    shown = MlflowClient().get_run(target)
    assert shown.data.tags[tracking.DESCRIPTION] == "Good."
    assert "thaw.stage" not in shown.data.tags
    assert shown.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert tracking.artifact(target, "report.html").read_text() == "well done"


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_run_whose_artifacts_are_damaged_is_not_taken_and_that_is_said(tmp_path, capsys, damage):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(1000))
    describe(folder, {})
    with open_run("resize", {tracking.STAGE: "resize", tracking.FINGERPRINT: "f"}, {}) as run_id:
        tracking.log_folder(run_id, folder, "checkpoint")
        tracking.mark_done(run_id, 1.0)
    found = find_done("f", ["checkpoint"])
    assert found is not None
    assert found.run_id == run_id
    weights = tracking.artifact(run_id, "checkpoint") / "weights"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(bytes(999) + b"\1" if damage == "flipped" else bytes(999))
    assert find_done("f", ["checkpoint"]) is None
    assert f"run {run_id} is not reused: its checkpoint is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/deep", "recipe.yaml"])
def test_artifacts_elsewhere_are_fetched_under_their_whole_path(monkeypatch, place):
    with open_run("resize", {tracking.STAGE: "resize"}, {}) as run_id:
        tracking.log_text(run_id, "{}", "checkpoint/deep/facts.json")
        tracking.log_text(run_id, "seed: 0", "recipe.yaml")
    monkeypatch.setattr(artifacts, "local_artifacts", lambda run_id: None)
    fetched = tracking.artifact(run_id, place)
    assert fetched.name == place.rpartition("/")[2]
    files = [path for path in (fetched, *fetched.rglob("*")) if path.is_file()]
    assert [path.name for path in files] == ["recipe.yaml" if place == "recipe.yaml" else "facts.json"]


def test_a_run_that_is_gone_on_with_ends_as_if_it_had_never_broken_off():
    with pytest.raises(ValueError, match="no number"), open_run("resize", {tracking.STAGE: "resize"}, {}) as run_id:
        raise ValueError("the loss is no number")
    assert look_up(run_id).data.tags[tracking.REASON] == "the loss is no number"
    with open_run("resize", {}, {}, again=run_id) as again:
        tracking.mark_done(again, 1.0)
    assert again == run_id
    assert look_up(run_id).info.status == "FINISHED"
    assert tracking.REASON not in look_up(run_id).data.tags


def test_a_run_that_is_gone_on_with_is_not_done_until_it_is_done_again():
    with open_run("sweep", {tracking.STAGE: "sweep"}, {}) as run_id:
        tracking.mark_done(run_id, 1.0)
    with pytest.raises(KeyboardInterrupt), open_run("sweep", {}, {}, again=run_id):
        raise KeyboardInterrupt
    assert tracking.DONE not in look_up(run_id).data.tags
    with open_run("sweep", {}, {}, again=run_id):
        tracking.mark_done(run_id, 1.0)
    assert look_up(run_id).data.tags[tracking.DONE] == "true"


@pytest.mark.parametrize(
    ("source", "shown"),
    [("https://a.org/pets", "https://a.org/pets"), ("s3://b/pets", "s3://b/pets"), ("abfs://c/pets", "abfs://c/pets")],
)
def test_pictures_from_elsewhere_are_logged_with_their_address(tracking_server, source, shown):
    with open_run("precompute", {}, {}) as run_id:
        tracking.log_dataset("pets", source, "d" * 64, "training")
    (given,) = mlflow.MlflowClient().get_run(run_id).inputs.dataset_inputs
    assert shown in given.dataset.source
