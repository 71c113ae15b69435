"""Runs go into the experiment of their data, unless the user named one; `mlflow run`'s own run then points to them."""

import json
import os
from urllib.parse import parse_qs

import pytest
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

from pipeline import tracking
from pipeline.system.errors import Pruned, UserError
from pipeline.system.processes import identity
from pipeline.tracking.abandoned import close_abandoned
from pipeline.tracking.experiments import DEFAULT, comparison_page, server_page, use_experiment, use_experiment_of
from tests.forked_processes import fork_program

TAGS = {tracking.STAGE: "resize"}
HERE, NUMBER, STARTED = identity().rsplit(":", 2)
DEAD = f"{HERE}:{NUMBER}:{float(STARTED) - 50:.2f}"


@pytest.fixture(autouse=True)
def nothing_named(tracking_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name)


@pytest.fixture
def cli_run(monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a run that `mlflow run` created in Default and handed to this process."""
    tags = {"mlflow.source.name": "file:///thaw", "mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "main"}
    run_id = MlflowClient().create_run(DEFAULT, run_name="bold-fox-7", tags=tags).info.run_id
    MlflowClient().log_param(run_id, "resize.lr", "1e-3")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", DEFAULT)
    return run_id


def look_up(run_id: str) -> Run:
    return MlflowClient().get_run(run_id)


def experiment_of(run_id: str) -> str:
    return MlflowClient().get_experiment(look_up(run_id).info.experiment_id).name


def named(name: str) -> Experiment | None:
    return MlflowClient().get_experiment_by_name(name)


def open_and_end(stage: str = "resize") -> str:
    with tracking.open_run(stage, {tracking.STAGE: stage}, {}) as run_id:
        pass
    return run_id


@pytest.mark.parametrize(
    ("data", "name"),
    [("elpv", "thaw-elpv"), ("my photos/2024: all", "thaw-my-photos-2024-all"), ("ä_1.b", "thaw-ä_1.b")],
)
def test_runs_go_into_the_experiment_of_their_data(data, name):
    use_experiment(data)
    outer = open_and_end()
    use_experiment(data)
    with tracking.open_run("main", {}, {}) as parent:
        nested = open_and_end()
    assert [experiment_of(run_id) for run_id in (outer, parent, nested)] == [name] * 3


def test_runs_of_processes_that_this_one_starts_go_there_too():
    use_experiment("farm")
    program = "from pipeline import tracking\nwith tracking.open_run('trial', {}, {}) as run_id: print(run_id)"
    assert experiment_of(fork_program(program).communicate()[0].split()[-1]) == "thaw-farm"


def test_an_experiment_that_is_there_is_used():
    there = MlflowClient().create_experiment("thaw-farm")
    use_experiment("farm")
    assert look_up(open_and_end()).info.experiment_id == there


def test_an_experiment_that_another_machine_creates_at_the_same_time_is_used(monkeypatch):
    there = MlflowClient().create_experiment("thaw-farm")
    look, answers = MlflowClient.get_experiment_by_name, [None]
    monkeypatch.setattr(
        MlflowClient, "get_experiment_by_name", lambda self, name: answers.pop() if answers else look(self, name)
    )
    use_experiment("farm")
    assert answers == []
    assert os.environ["MLFLOW_EXPERIMENT_ID"] == there


def test_an_experiment_that_was_deleted_is_reported_in_a_sentence():
    MlflowClient().delete_experiment(MlflowClient().create_experiment("thaw-farm"))
    with pytest.raises(UserError, match=r"thaw-farm was deleted; restore it \(mlflow .*, or name another"):
        use_experiment("farm")


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_the_experiment_that_the_user_named_stays(variable, monkeypatch):
    monkeypatch.setenv(variable, "test" if variable.endswith("NAME") else named("test").experiment_id)
    use_experiment("farm")
    assert experiment_of(open_and_end()) == "test"
    assert named("thaw-farm") is None


def test_the_experiment_that_was_named_on_the_command_line_of_mlflow_run_stays(monkeypatch):
    handed = MlflowClient().create_run(named("test").experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", handed)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", named("test").experiment_id)
    use_experiment("farm")
    assert open_and_end() == handed
    assert named("thaw-farm") is None


def test_default_stays_if_the_user_named_it(cli_run, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "Default")
    use_experiment("farm")
    assert open_and_end() == cli_run


def test_the_run_of_mlflow_run_points_to_the_run_in_the_experiment_of_the_data(cli_run):
    use_experiment("farm")
    with tracking.open_run("resize", TAGS, {"resize.lr": 0.001, "seed": 0}) as run_id:
        tracking.name_run(run_id, "farm, 64 px")
        nested = open_and_end("lr_find")
    run, pointer = look_up(run_id), look_up(cli_run)
    assert run_id != cli_run
    assert [experiment_of(one) for one in (run_id, nested, cli_run)] == ["thaw-farm", "thaw-farm", "Default"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "farm, 64 px")
    assert run.data.params == {"resize.lr": "1e-3", "seed": "0"}
    assert run.data.tags["mlflow.source.name"] == "file:///thaw"
    assert run.data.tags["mlflow.project.entryPoint"] == "main"
    assert "mlflow.parentRunId" not in run.data.tags
    assert look_up(nested).data.tags["mlflow.parentRunId"] == run_id
    assert (pointer.info.status, pointer.info.run_name) == ("FINISHED", "resize")
    assert pointer.data.tags[tracking.STAGE] == "resize"
    assert pointer.data.tags[tracking.REUSED] == run_id
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}"
    assert f"[run {run_id}]({page})" in pointer.data.tags[tracking.DESCRIPTION]


def test_a_pointer_leads_to_the_stage_that_it_stands_for(cli_run):
    use_experiment("farm")
    with tracking.open_run("resize", TAGS, {}) as run_id:
        tracking.mark_done(run_id, 1.0)
    assert tracking.run_of(cli_run).run_id == run_id


def test_the_evaluation_is_found_by_the_run_of_mlflow_run(cli_run):
    use_experiment("farm")
    with tracking.open_run("main", {tracking.STAGE: "main", f"{tracking.STAGE}.evaluate": "e"}, {}):
        pass
    assert tracking.evaluation_of(cli_run) == ("e", "main")


def test_a_name_that_the_user_gave_is_the_name_of_both(cli_run):
    tracking.rename_run(cli_run, "my run")
    use_experiment("farm")
    with tracking.open_run("resize", TAGS, {}) as run_id:
        tracking.name_run(run_id, "farm, 64 px")
    assert [look_up(one).info.run_name for one in (run_id, cli_run)] == ["my run", "my run"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "KILLED", "stopped by Ctrl-C or SIGTERM"),
        (Pruned("hopeless"), "KILLED", "hopeless"),
        (UserError("The rate is too high."), "FAILED", "The rate is too high."),
        (ValueError(), "FAILED", "ValueError"),
    ],
    ids=repr,
)
def test_a_pointer_ends_as_its_run_does(cli_run, error, status, reason):
    use_experiment("farm")
    with pytest.raises(type(error)), tracking.open_run("resize", TAGS, {}) as run_id:
        raise error
    for run in (look_up(run_id), look_up(cli_run)):
        assert (run.info.status, run.data.tags[tracking.REASON]) == (status, reason)


def test_a_finished_run_is_reused_in_the_experiment_of_the_data_and_named_by_its_pointer(cli_run):
    use_experiment("farm")
    with tracking.open_run("resize", TAGS | {tracking.FINGERPRINT: "f"}, {}) as run_id:
        tracking.mark_done(run_id, 1.0)
    assert tracking.find_done("f", ()).run_id == run_id
    assert tracking.find_done("f", (), within=tracking.run_of(cli_run).run_id).run_id == run_id
    os.environ["MLFLOW_EXPERIMENT_ID"] = named("test").experiment_id
    assert tracking.find_done("f", ()) is None
    assert tracking.find_done("f", (), within=run_id).run_id == run_id


@pytest.mark.parametrize("by_pointer", [False, True])
def test_a_stage_goes_into_the_experiment_of_its_upstream_run(cli_run, monkeypatch, by_pointer):
    use_experiment("farm")
    upstream = open_and_end()
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    use_experiment_of(cli_run if by_pointer else upstream)
    assert experiment_of(open_and_end()) == "thaw-farm"


def test_a_stage_on_an_upstream_run_in_default_runs_in_the_run_of_mlflow_run(cli_run):
    upstream = MlflowClient().create_run(DEFAULT).info.run_id
    use_experiment_of(upstream)
    assert open_and_end() == cli_run


def test_an_upstream_run_that_is_not_there_changes_nothing():
    use_experiment_of("0" * 32)
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ


def running(experiment_id: str, **tags: str) -> str:
    return (
        MlflowClient().create_run(experiment_id, tags={f"thaw.{key}": value for key, value in tags.items()}).info.run_id
    )


@pytest.mark.parametrize("ended_by_mlflow", [False, True], ids=["the whole machine", "the stage's process alone"])
def test_after_a_kill_both_are_closed_as_killed(ended_by_mlflow):
    use_experiment("farm")
    killed = running(os.environ["MLFLOW_EXPERIMENT_ID"], process=DEAD)
    pointer = running(DEFAULT, process=DEAD, reused=killed)
    if ended_by_mlflow:
        MlflowClient().set_terminated(pointer, "FAILED")
    open_and_end()
    for run in (look_up(killed), look_up(pointer)):
        assert run.info.status == "KILLED"
        assert "killed" in run.data.tags[tracking.REASON]


@pytest.mark.parametrize(("status", "reason"), [("FINISHED", None), ("FAILED", "The rate is too high.")])
def test_a_pointer_whose_process_was_killed_at_the_very_end_ends_as_its_run_did(status, reason):
    use_experiment("farm")
    ended = running(os.environ["MLFLOW_EXPERIMENT_ID"], process=DEAD, **({"reason": reason} if reason else {}))
    MlflowClient().set_terminated(ended, status)
    pointer = running(DEFAULT, process=DEAD, reused=ended)
    open_and_end()
    assert look_up(pointer).info.status == status
    assert look_up(pointer).data.tags.get(tracking.REASON) == reason


def test_default_is_left_alone_if_runs_go_into_an_experiment_that_the_user_named():
    left = running(DEFAULT, process=DEAD)
    os.environ["MLFLOW_EXPERIMENT_ID"] = named("test").experiment_id
    close_abandoned(running(named("test").experiment_id))
    assert look_up(left).info.status == "RUNNING"


@pytest.mark.parametrize(
    "ask", [tracking.run_of, tracking.is_there, tracking.evaluation_of, use_experiment_of], ids=lambda ask: ask.__name__
)
def test_a_run_that_cannot_be_looked_up_is_not_taken_for_none(ask, monkeypatch):
    run_id = open_and_end()

    def out_of_order(*_: object) -> None:
        raise MlflowException("Out of order", INTERNAL_ERROR)

    monkeypatch.setattr(MlflowClient, "get_run", out_of_order)
    with pytest.raises(UserError, match=r"gives no run \(Out of order\)"):
        ask(run_id)


@pytest.mark.parametrize("run_id", ["0" * 32, "a b"])
def test_a_run_that_the_server_does_not_know_is_none(run_id):
    assert not tracking.is_there(run_id)
    for ask in (tracking.run_of, tracking.evaluation_of):
        with pytest.raises(UserError, match=f"There is no run {run_id}"):
            ask(run_id)


def test_a_pointer_to_a_run_that_is_gone_is_closed():
    left = running(DEFAULT, process=DEAD, reused="0" * 32)
    use_experiment("farm")
    open_and_end()
    assert look_up(left).info.status == "KILLED"
    assert "is gone" in look_up(left).data.tags[tracking.REASON]


def test_a_run_of_main_is_compared_with_the_last_one_of_its_experiment_that_was_done():
    use_experiment("cells")
    ids = []
    for stage, is_done in (("main", True), ("main", True), ("main", False), ("resize", True), ("main", False)):
        with tracking.open_run(stage, {tracking.STAGE: stage}, {}) as run_id:
            ids.append(run_id)
            if is_done:
                tracking.mark_done(run_id, 1.0)
    address = comparison_page(ids[-1])
    assert address is not None
    parts = parse_qs(address.removeprefix("#/compare-runs?"))
    assert json.loads(parts["runs"][0]) == [ids[-1], ids[1]]
    assert json.loads(parts["experiments"][0]) == [look_up(ids[0]).info.experiment_id]
    elsewhere = MlflowClient().create_experiment("thaw-photos")
    assert comparison_page(MlflowClient().create_run(elsewhere).info.run_id) is None


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("sqlite:///mlflow.db", ""),
        ("file:///runs", ""),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@mlflow.example/team/", "https://mlflow.example/team"),
    ],
)
def test_a_server_has_pages_and_a_database_has_none(uri, page, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert server_page() == page
