from pathlib import Path

import pandas as pd
import pytest

from pipeline import tracking
from pipeline.data.manifest import COLUMNS, Manifest, save_manifest
from pipeline.recipe.schema import Recipe, write_recipe
from pipeline.runs.evaluated_runs import read_evaluated_run
from pipeline.system.errors import UserError
from pipeline.system.tables import write_table

pytestmark = pytest.mark.usefixtures("tracking_server")


@pytest.fixture
def runs(tmp_path):
    """The ids of an evaluate run on precompute and resize, and of the run of main that it belongs to."""
    table = pd.DataFrame(
        {
            "path": ["a\r,b.png", "b.png", "c\n.png", "d.png"],
            "label": ["cat", "NA", "cat", "NA"],
            "split": ["train", "test", "valid", "test"],
            "hash": ["h0", "h1", "h2", "h3"],
            "width_px": 4,
            "height_px": 4,
            "mode": "L",
            "group": "",
            "weight": 1.0,
        }
    )[COLUMNS]
    manifest = Manifest("pets", Path("/nowhere"), ["NA", "cat"], table, pd.DataFrame(columns=["path", "reason"]))
    save_manifest(manifest, tmp_path / "manifest")
    predictions = table.assign(row=range(4), predicted=["cat", "NA", "cat", "cat"], tta_loss=[None, 1.0, None, 2.0])
    predictions = predictions.iloc[[0, 2, 3, 1]]
    write_table(predictions, tmp_path / "predictions.csv")

    def run(stage, upstream, **tags):
        given = {tracking.STAGE: stage, **tags} | ({tracking.UPSTREAM: upstream} if upstream else {})
        with tracking.open_run(stage, given, {}) as run_id:
            tracking.log_text(run_id, write_recipe(Recipe(seed=7)), "recipe.yaml")
            if stage == "precompute":
                tracking.log_folder(run_id, tmp_path / "manifest", "manifest")
            if stage == "resize":
                tracking.log_points(run_id, [("valid/loss", 0.5, 2), ("valid/loss", 0.75, 1)])
            if stage == "evaluate":
                tracking.log_text(run_id, (tmp_path / "predictions.csv").read_text(), "predictions.csv")
                tracking.log_metrics(run_id, {"test/accuracy": 0.5, "valid/loss": 0.4}, step=2)
            tracking.mark_done(run_id, 1.0)
        return run_id

    evaluate = run("evaluate", run("resize", run("precompute", None)), **{tracking.EVALUATED_ON: "test"})
    return evaluate, run("main", None, **{"thaw.stage.evaluate": evaluate})


def test_a_run_of_main_and_its_evaluate_run_are_read_alike(runs):
    evaluate, main = (read_evaluated_run(one) for one in runs)
    assert main.name == f"main ({runs[1][:8]})"
    assert evaluate.name == f"evaluate ({runs[0][:8]})"
    for run in (evaluate, main):
        assert run.evaluated.to_numpy().tolist() == [["h3", "NA", "cat"], ["h1", "NA", "NA"]]
        assert (run.split, run.classes, run.settings["seed"]) == ("test", ["NA", "cat"], 7)
        assert run.metrics["test/accuracy"] == 0.5
        assert list(run.curves) == ["valid/loss"]
        assert run.curves["valid/loss"].to_numpy().tolist() == [[1, 0.75], [2, 0.5]]


def test_a_run_that_was_not_evaluated_is_told(runs):
    with tracking.open_run("resize", {tracking.STAGE: "resize"}, {}) as resize:
        pass
    with tracking.open_run("by hand", {}, {}) as by_hand:
        pass
    for run_id, words in ((resize, "is a run of resize"), (by_hand, "is of no stage"), ("0" * 32, "There is no run")):
        with pytest.raises(UserError, match=words):
            read_evaluated_run(run_id)
