"""compare as a user types it: two trained runs in one report."""

import re

import pandas as pd
import pytest


@pytest.mark.slow
def test_two_runs_are_compared_in_one_report(workplace, main, main_otherwise):
    ids = [main.parent.info.run_id, main_otherwise.parent.info.run_id]
    printed = workplace.command("compare", f"runs={','.join(ids)}")
    run = workplace.runs(stage="compare")[-1]
    assert f"comparison.html of run {run.info.run_id}" in printed
    assert run.info.status == "FINISHED"
    artifacts = run.info.artifact_uri
    metrics, settings = pd.read_csv(f"{artifacts}/metrics.csv"), pd.read_csv(f"{artifacts}/settings.csv")
    for column, parent in zip(metrics.columns[1:], (main.parent, main_otherwise.parent), strict=True):
        accuracy = metrics.loc[metrics["metric"] == "test/accuracy", column].item()
        assert accuracy == parent.data.metrics["test/accuracy"]
    assert settings["key"].tolist() == ["fine_tune.warm_up"]
    with open(f"{artifacts}/comparison.html", encoding="utf-8") as file:
        page = file.read()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "the page has to stand by itself"
    for words in ("McNemar", "test/accuracy", "fine_tune.warm_up", main.parent.info.run_name):
        assert words in page


@pytest.mark.slow
def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(workplace, main):
    ids = [main.parent.info.run_id, main.stage("precompute").info.run_id]
    printed = workplace.command("compare", f"runs={','.join(ids)}", expect=2)
    assert f"Run {ids[1]} is a run of precompute that was not evaluated" in printed
    assert "Traceback" not in printed
