import pytest
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.runs.summary import CURVES, log_results, log_summary
from pipeline.tracking.runs import RunRef

STAGES = {
    "precompute": ({}, 1.0, True),
    "train_head": (
        {"best_valid_accuracy": 0.91, "best_valid_loss": 0.4, "kept_valid_accuracy": 0.9, "valid/accuracy": 0.8},
        61.0,
        True,
    ),
    "resize": ({"best_valid_accuracy": 0.88, "best_valid_loss": 0.3, "valid/accuracy": 0.875}, 3.0, False),
}


@pytest.fixture
def done(tracking_server) -> dict[str, RunRef]:
    """Finished runs of three stages."""
    refs = {}
    for name, (metrics, seconds, reused) in STAGES.items():
        with tracking.open_run(name, {}, {}) as run_id:
            refs[name] = RunRef(run_id, name, "", None, metrics, seconds, reused=reused)
    return refs


def test_the_parent_run_gets_the_best_figures_of_all_stages_and_names_their_runs(done):
    with tracking.open_run("main", {}, {}) as run_id:
        log_summary(run_id, "cells", done)
    data = MlflowClient().get_run(run_id).data
    assert data.metrics == {"best_valid_accuracy": 0.91, "best_valid_loss": 0.3}
    assert data.tags["thaw.reused_stages"] == "precompute, train_head"


def test_the_end_says_the_accuracy_its_interval_and_what_to_try_next(done, capsys):
    figures = {"test/accuracy": 0.88, "test/accuracy_low": 0.854, "test/accuracy_high": 0.904}
    with tracking.open_run("evaluate", {tracking.ADVICE: "It over-fits. Try: mlflow run ."}, {}) as run_id:
        evaluated = RunRef(run_id, "evaluate", "", None, figures)
    with tracking.open_run("main", {}, {}) as run_id:
        log_summary(run_id, "cells", done | {"evaluate": evaluated})
    line = "cells: test accuracy 0.880 (95% interval 0.854 to 0.904). It over-fits. Try: mlflow run .\n"
    assert line in capsys.readouterr().out


def test_what_was_evaluated_stands_at_the_end_of_the_parents_curve(tracking_server):
    refs = {}
    for name, step in {"train_head": 10, "fine_tune": 30}.items():
        with tracking.open_run(name, {}, {}) as run_id:
            tracking.log_metrics(run_id, {"train/loss": 0.5, "valid/accuracy": 0.7}, step=step)
            refs[name] = RunRef(run_id, name, "", None)
    found = {"valid/accuracy": 0.9, "stage_seconds": 3.0, "temperature": 1.2, "test/kappa": 0.8, "test/accuracy": 0.85}
    evaluated = RunRef("none", "evaluate", "", None, found)
    with tracking.open_run("main", {}, {}) as run_id:
        log_results(run_id, refs | {"evaluate": evaluated})
    assert MlflowClient().get_run(run_id).data.metrics == {"valid/accuracy": 0.9, "test/accuracy": 0.85}
    assert [point.step for point in MlflowClient().get_metric_history(run_id, "valid/accuracy")] == [30]


def test_the_page_of_the_parent_run_is_named_after_its_result_and_leads_to_every_stage(done):
    with tracking.open_run("main", {tracking.STAGE: "main"}, {}) as run_id:
        tracking.describe_run(run_id, "Accuracy 0.9.")
        log_summary(run_id, "cells", done)
    run = MlflowClient().get_run(run_id)
    assert run.info.run_name == "cells, valid accuracy 0.875"
    text = run.data.tags[tracking.DESCRIPTION]
    assert text.startswith("Accuracy 0.9.")
    for name, ref in done.items():
        link = f"[{name}](#/experiments/{run.info.experiment_id}/runs/{ref.run_id})"
        assert f"{link} (reused)" in text if ref.reused else link in text


@pytest.mark.parametrize(
    ("name", "kept"), [("silent-shad-796", False), ("main", False), ("mine", True), ("my-best-run", True)]
)
def test_a_name_that_the_user_gave_stays(done, name, kept):
    with tracking.open_run(name, {tracking.STAGE: "main"}, {}) as run_id:
        log_summary(run_id, "cells", done)
    assert (MlflowClient().get_run(run_id).info.run_name == name) == kept


def test_the_run_has_no_tag_more_than_it_needs(done, tracking_server):
    with tracking.open_run("main", {}, {}) as run_id:
        log_summary(run_id, "cells", {"resize": done["resize"], "evaluate": done["train_head"]})
    tags = MlflowClient().get_run(run_id).data.tags
    assert {name: tags[name] for name in tags if name.startswith("thaw.stage")} == {
        "thaw.stage.evaluate": done["train_head"].run_id
    }


def test_the_console_shows_a_line_for_each_stage_and_where_to_look(done, capsys):
    with tracking.open_run("main", {}, {}) as run_id:
        log_summary(run_id, "cells", done)
    lines = capsys.readouterr().out.splitlines()
    (precompute,) = (line for line in lines if "precompute" in line)
    (train_head,) = (line for line in lines if "train_head" in line)
    (resize,) = (line for line in lines if "resize" in line)
    assert "1.0 s" in precompute
    assert f"run {done['precompute'].run_id[:8]}" in precompute
    assert "1 min 01 s" in train_head
    assert "0.9000" in train_head
    assert "0.8750" in resize
    assert "run" not in resize
    assert run_id in lines[-1]


def test_what_a_stage_was_expected_to_take_stands_beside_what_it_took(done, capsys):
    with tracking.open_run("main", {}, {}) as run_id:
        log_summary(run_id, "cells", done, {"resize": 130.0})
    lines = capsys.readouterr().out.splitlines()
    (resize,) = (line for line in lines if "resize" in line)
    assert "3.0 s" in resize
    assert "2.2 min" in resize
    assert sum(" min " in line for line in lines) == 2


def test_the_last_line_leads_to_the_page_that_compares_the_run_with_the_one_before_it(done, capsys):
    ids = []
    for _ in range(2):
        with tracking.open_run("main", {tracking.STAGE: "main"}, {}) as run_id:
            ids.append(run_id)
            log_summary(run_id, "cells", done)
            tracking.mark_done(run_id, 1.0)
    first, second = capsys.readouterr().out.split(f"this is run {ids[0]}.\n")
    assert "compare-runs" not in first
    line = second.splitlines()[-1]
    assert line.startswith("Beside the run of main before it: http://127.0.0.1:5000/#/compare-runs?runs=")
    assert f"%22{ids[1]}%22%2C%20%22{ids[0]}%22" in line


def test_on_a_server_the_pages_are_shown_at_its_address(done, capsys, monkeypatch):
    monkeypatch.setattr(tracking, "server_page", lambda: "https://mlflow.example")
    monkeypatch.setattr(tracking, "comparison_page", lambda run_id: "#/compare-runs?runs=x")
    with tracking.open_run("main", {}, {}) as run_id:
        log_summary(run_id, "cells", done)
    lines = capsys.readouterr().out.splitlines()
    assert f"at https://mlflow.example; this is run {run_id}." in lines[-2]
    assert lines[-1].endswith("https://mlflow.example/#/compare-runs?runs=x")


@pytest.mark.parametrize(
    "name",
    ["train/loss", "valid/loss", "valid/accuracy", "train/images_per_second", "overfit/gap", "rate_head"],
)
def test_the_parent_run_takes_over_what_is_compared(name):
    assert name.startswith(CURVES)


@pytest.mark.parametrize("name", ["stage_seconds", "system/cpu_utilization_percentage", "lr_find/loss"])
def test_the_parent_run_does_not_take_over_what_belongs_to_one_stage(name):
    assert not name.startswith(CURVES)
