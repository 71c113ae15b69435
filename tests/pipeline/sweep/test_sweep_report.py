import re

import pandas as pd
import pytest
from optuna.trial import TrialState

from pipeline.sweep.sweep_report import BestRecipe, counts_in_words, doubt, settings_that_differ, write_sweep_report
from tests.pipeline.sweep.studies import RECIPE, add, drawn_study, study_of

ACCURACY = ["valid/accuracy"]
BOTH = ["valid/accuracy", "train/seconds"]
SEEDS = pd.DataFrame({"seed": [0, 1], "valid/accuracy": [0.9, 0.8], "valid/loss": [0.3, 0.4]})


def written(study, objectives, folder, found=BestRecipe(), pictures=None):  # noqa: B008
    settings = {"fine_tune.lr": "auto", "fine_tune.cycle_len": 1}
    write_sweep_report(study, objectives, settings, found, pictures, folder)
    return (folder / "sweep.html").read_text(), (folder / "sweep.md").read_text()


def test_the_report_is_one_page_that_reads_offline_and_its_words_as_markdown(tmp_path):
    found = BestRecipe(SEEDS, ["Test is <fine>.", ""], "mlflow run . -P fine_tune.lr=0.001")
    page, text = written(drawn_study(30), ACCURACY, tmp_path, found, 500)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.html", "sweep.md", "trials.csv"}
    figures = re.findall(r'<div id="([a-z_]+)-\d" class="plotly-graph-div"', page)
    assert list(dict.fromkeys(figures)) == [
        "history", "curves", "importances", "slice", "contour", "parallel_coordinates",
    ]  # fmt: skip
    assert page.count("Plotly.newPlot(") >= len(figures)
    assert len(re.findall(r"plotly\.js v\d", page)) == 1, "the library is in the page once"
    assert not re.search(r"<(script|link|img)[^>]* (src|href)=", page), "nothing is loaded from elsewhere"
    for name in ("Which keys matter", "plotly", "!["):
        assert name not in text
    assert "Test is &lt;fine&gt;." in page
    assert "\n    mlflow run . -P fine_tune.lr=0.001\n" in text
    for heading in ("The best recipe", "The best recipe over several seeds", "Trials"):
        assert f"## {heading}\n" in text
    assert "valid/accuracy 0.8500 ± 0.0707, valid/loss 0.3500 ± 0.0707" in text
    assert "The best 20 of 20 complete trials\n\nTrial 0 is the recipe; the sampler chose all others." in text
    assert "pruned at epoch 1 at " in text
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 30


def test_the_report_can_be_written_again_with_more_trials(tmp_path):
    before, _ = written(drawn_study(1), ACCURACY, tmp_path)
    after, _ = written(drawn_study(3), ACCURACY, tmp_path)
    assert 'id="slice-0"' not in before
    assert 'id="slice-0"' in after


def test_before_any_trial_it_says_that_none_is_done(tmp_path):
    page, text = written(study_of(), ACCURACY, tmp_path)
    assert "No trial is done yet." in page
    assert "plotly" not in page
    assert "## " not in text


def test_if_none_is_complete_it_says_why(tmp_path):
    study = study_of()
    add(study, state=TrialState.FAIL, reason="out of memory")
    add(study, None, {"fine_tune.lr": 1e-3}, [0.5], TrialState.PRUNED, reason="hopeless")
    _, text = written(study, ACCURACY, tmp_path)
    assert "Trials: 1 pruned, 1 failed. None is complete yet." in text
    assert "| 0 | failed: out of memory |" in text
    assert "The best recipe" not in text


def test_one_trial_the_recipes_own_beats_nothing(tmp_path):
    study = study_of()
    add(study, 0.8, {"fine_tune.lr": 1e-3}, [0.8], **RECIPE)
    _, text = written(study, ACCURACY, tmp_path)
    assert "Trial 0, the recipe's own, is best: no trial beat the recipe." in text
    assert "It has the recipe's own values." in text


def test_with_two_objectives_it_shows_the_front_and_what_the_proposed_trial_costs(tmp_path):
    study = study_of("maximize", "minimize")
    add(study, [0.8, 20.0], {"fine_tune.lr": 1e-3}, **RECIPE)
    add(study, [0.9, 60.4], {"fine_tune.lr": 2e-3})
    add(study, [0.7, 30.0], {"fine_tune.lr": 3e-3})
    _, text = written(study, BOTH, tmp_path)
    assert "valid/accuracy is 0.1000 higher, which is better, train/seconds is 40 s higher, which is worse." in text
    front = text.split("## The Pareto front")[1].split("##")[0]
    assert "| 1 | 0.9000 | 60 | 0.002 |\n| 0 | 0.8000 | 20 | 0.001 |" in front
    assert "| 2 |" not in front


@pytest.mark.parametrize(("pictures", "is_doubted"), [(100, True), (300, False), (None, False)])
def test_a_gain_within_the_noise_is_doubted(pictures, is_doubted):
    study = study_of()
    add(study, 0.80, **RECIPE)
    add(study, 0.85)
    words = doubt(study, ACCURACY, pictures)
    assert bool(words) == is_doubted
    if is_doubted:
        assert "0.0500 better" in words
        assert "100 validation pictures (0.0357)" in words


def test_nothing_is_doubted_if_the_noise_is_not_known():
    study = study_of()
    add(study, 0.80, **RECIPE)
    assert doubt(study, ACCURACY, 100) == "", "the recipe's own is the best"
    add(study, 0.85)
    assert doubt(study, ["valid/macro_f1"], 100) == "", "no share of pictures"


def test_only_what_differs_from_the_recipe_is_listed():
    study = study_of()
    add(study, 0.8, {"fine_tune.lr": 1e-3, "augment.strength": 1.0, "fine_tune.cycle_len": 2}, **RECIPE)
    add(study, 0.9, {"fine_tune.lr": 2e-3, "augment.strength": 1.5, "fine_tune.cycle_len": 2})
    own, best = study.trials
    settings = {"fine_tune.lr": "auto", "augment.strength": 1, "fine_tune.cycle_len": 2}
    rows = [["fine_tune.lr", "auto (0.001)", "0.002"], ["augment.strength", "1", "1.5"]]
    assert settings_that_differ(best, own, settings).to_numpy().tolist() == rows
    rows[0][1] = "auto"
    assert settings_that_differ(best, None, settings).to_numpy().tolist() == rows


def test_trials_that_were_run_again_are_counted_apart():
    study = study_of()
    add(study, state=TrialState.FAIL)
    add(study, 0.8, system={"failed_trial": 0, "retry_history": [0]})
    assert counts_in_words(study) == "Trials: 1 complete, 1 interrupted and run again."
