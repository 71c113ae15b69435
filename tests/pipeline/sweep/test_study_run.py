"""A whole study in one command, with training that takes no time and without processes of its own."""

import sqlite3
from pathlib import Path

import mlflow
import optuna
import pytest

from pipeline import tracking
from pipeline.recipe.picture_sections import Head
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.sweep import study_run
from pipeline.sweep.leader import LEADER
from pipeline.sweep.study_run import Pictures, Steps, run_study
from pipeline.sweep.workers import run_worker
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef

PICTURES = Pictures("cells", "digest", 100)
SPACE = {"fine_tune.lr": {"type": "log_uniform", "low": 1e-4, "high": 1e-2}}


class Bench:
    """Stands for the stages, and records what was trained and evaluated."""

    def __init__(self) -> None:
        self.trained: list[tuple[Recipe, bool]] = []
        self.evaluated: list[Recipe] = []

    def train(self, recipe: Recipe, after_epoch: object = None, find_given: bool = True):
        self.trained.append((recipe, find_given))
        with tracking.open_run("stage", {}, {}) as run_id:
            pass
        for name, rate in (("lr_find", 1e-3), ("lr_find_unfrozen", 2e-3)):
            yield name, RunRef(run_id, "lr_find", "", None, {"suggestion/lr": rate})
        metrics = {"kept_valid_accuracy": 0.8, "kept_valid_macro_f1": 0.7, "kept_valid_loss": 0.5}
        for name in ("train_head", "fine_tune", "resize"):
            yield name, RunRef(run_id, name, "", None, metrics)

    def evaluate(self, recipe: Recipe, upstream: str) -> RunRef:
        self.evaluated.append(recipe)
        with tracking.open_run("evaluate", {}, {}) as run_id:
            tracking.log_text(run_id, "how good", "report.html")
        return RunRef(run_id, "evaluate", "", None, {"test/accuracy": 0.79})


@pytest.fixture
def bench(tracking_server: str, url: str, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Trials are run in this process, on the storage of the test's folder."""

    def run_here(recipe, study, url, run_id, train, report) -> None:
        run_worker(0, recipe, url, study.study_name, run_id, train, "command")
        report()

    monkeypatch.setattr(study_run, "run_all", run_here)
    monkeypatch.setattr("pipeline.sweep.leader.SECONDS_TO_SETTLE", 0.01)
    monkeypatch.setattr("pipeline.sweep.study_run.POLL_SECONDS", 0.01)
    return Bench()


def recipe_of(folder: Path, trials: int, **sweep: object) -> Recipe:
    content = {"trials": trials, "seeds": 1, "space": SPACE, "name": "mine", "storage": f"sqlite:///{folder}/sweeps.db"}
    return build_recipe({"sweep": content | sweep, "reuse": "auto"}, {}, "mine.yaml")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report, which takes seconds to draw, is left out."""
    monkeypatch.setattr(study_run, "log_report", lambda *arguments: None)


def study_at(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="mine", storage=f"sqlite:///{folder}/sweeps.db")


def test_the_leader_runs_the_recipe_first_then_other_trials_and_evaluates_the_best_once(bench, tmp_path) -> None:
    ref = run_study(recipe_of(tmp_path, 3), PICTURES, Steps(bench.train, bench.evaluate))
    study = study_at(tmp_path)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert study.trials[0].user_attrs["origin"] == "the recipe"
    assert study.trials[0].params["fine_tune.lr"] == 2e-3, "what the finder suggests for auto"
    assert [find_given for _, find_given in bench.trained] == [True, False, False, False, False]
    assert len(bench.evaluated) == 1
    run = mlflow.get_run(ref.run_id)
    assert run.info.run_id == study.user_attrs["run_id"]
    assert run.data.tags["thaw.study"] == "mine"
    assert run.data.metrics["best/valid_accuracy"] == 0.8
    assert (Path(run.info.artifact_uri) / "sweep.html").is_file()


def test_a_second_command_continues_in_the_run_of_the_first(bench, no_report, tmp_path) -> None:
    refs = [run_study(recipe_of(tmp_path, trials), PICTURES, Steps(bench.train, bench.evaluate)) for trials in (2, 3)]
    assert refs[0].run_id == refs[1].run_id
    assert len(study_at(tmp_path).trials) == 3


def test_a_grid_follows_the_recipe(bench, no_report, tmp_path) -> None:
    run_study(recipe_of(tmp_path, 6, sampler="grid"), PICTURES, Steps(bench.train, bench.evaluate))
    trials = study_at(tmp_path).trials
    assert len(trials) == 6
    rates = [trial.params["fine_tune.lr"] for trial in trials]
    assert rates[:4] == pytest.approx([2e-3, 1e-4, 1e-3, 1e-2])
    assert len(set(rates)) == 6, "beyond the grid, values are drawn at random"


def test_if_another_machine_leads_and_all_is_done_nothing_is_run(bench, no_report, tmp_path) -> None:
    first = run_study(recipe_of(tmp_path, 2), PICTURES, Steps(bench.train, bench.evaluate))
    study_at(tmp_path).set_user_attr(LEADER, {"process": "another-machine:1:0.00", "until": 1e12})
    trained = len(bench.trained)
    assert run_study(recipe_of(tmp_path, 2), PICTURES, Steps(bench.train, bench.evaluate)).run_id == first.run_id
    assert len(bench.trained) == trained


def test_if_another_machine_leads_this_one_runs_trials_and_evaluates_nothing(bench, no_report, tmp_path) -> None:
    first = run_study(recipe_of(tmp_path, 1), PICTURES, Steps(bench.train, bench.evaluate))
    study_at(tmp_path).set_user_attr(LEADER, {"process": "another-machine:1:0.00", "until": 1e12})
    assert run_study(recipe_of(tmp_path, 3), PICTURES, Steps(bench.train, bench.evaluate)).run_id == first.run_id
    assert len(study_at(tmp_path).trials) == 3
    assert len(bench.evaluated) == 1


def test_a_named_study_is_continued_on_the_same_pictures_alone_whoever_leads_it(
    bench, no_report, tmp_path, capsys
) -> None:
    steps = Steps(bench.train, bench.evaluate)
    run_study(recipe_of(tmp_path, 1), PICTURES, steps)
    trained, others = len(bench.trained), Pictures("photos", "another digest", 100)
    refused = r"The study mine differs in its data \(cells, digest digest there, photos, digest another  here\), so"
    with pytest.raises(UserError, match=refused):
        run_study(recipe_of(tmp_path, 2), others, steps)
    study_at(tmp_path).set_user_attr(LEADER, {"process": "another-machine:1:0.00", "until": 1e12})
    with pytest.raises(UserError, match=refused):
        run_study(recipe_of(tmp_path, 2), others, steps)
    assert len(bench.trained) == trained

    # As an earlier version left it.
    study_at(tmp_path).set_user_attr(LEADER, {"process": "another-machine:1:0.00", "until": 0.0})
    with sqlite3.connect(tmp_path / "sweeps.db") as database:
        database.execute("DELETE FROM study_user_attributes WHERE key IN ('data', 'settings')")
    with pytest.raises(
        UserError, match=r"differs in seed \(0 there, 1 here\) and head\.hidden \(512 there, 8 here\), so"
    ):
        run_study(recipe_of(tmp_path, 2).model_copy(update={"seed": 1, "head": Head(hidden=8)}), PICTURES, steps)
    assert len(bench.trained) == trained
    run_study(recipe_of(tmp_path, 2), PICTURES, steps)
    assert "mine does not say on which pictures it was made; they are taken to be these" in capsys.readouterr().out
    with pytest.raises(UserError, match=refused):
        run_study(recipe_of(tmp_path, 3), others, steps)


def test_a_study_whose_first_command_failed_before_any_trial_takes_a_corrected_recipe(
    bench, no_report, tmp_path
) -> None:
    def fail(recipe: Recipe):
        raise UserError("The weights are broken.")
        yield

    with pytest.raises(UserError, match="broken"):
        run_study(recipe_of(tmp_path, 1), PICTURES, Steps(fail, bench.evaluate))
    corrected = recipe_of(tmp_path, 1).model_copy(update={"seed": 1})
    run_study(corrected, PICTURES, Steps(bench.train, bench.evaluate))
    assert len(study_at(tmp_path).trials) == 1
