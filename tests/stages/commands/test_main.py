"""The whole recipe on real pictures, through `mlflow run`, in the order that a user would type the commands."""

import json
import re
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.evaluation.calibration import apply_temperature
from pipeline.recipe.recipe_file import read_recipe
from pipeline.recipe.schema import training_settings

STAGES = ["precompute", "lr_find", "train_head", "lr_find", "fine_tune", "resize", "evaluate"]


def files(workplace, run, folder=None):
    return {item.path for item in workplace.client.list_artifacts(run.info.run_id, folder)}


def test_every_stage_is_a_finished_run_nested_in_the_one_of_mlflow_run(main):
    parent, nested = main.parent, main.nested
    assert [run.data.tags["thaw.stage"] for run in nested] == STAGES
    assert {run.info.status for run in [parent, *nested]} == {"FINISHED"}
    assert all(run.data.tags["thaw.done"] == "true" for run in nested)
    assert "mlflow.project.entryPoint" in parent.data.tags


def test_each_stage_names_the_run_it_followed(main):
    *followed, _ = [run.data.tags.get("thaw.upstream") for run in main.nested]
    assert followed == [None, *(run.info.run_id for run in main.nested[:-2])]


def test_the_network_that_validates_best_is_evaluated_whichever_stage_it_is_of(main):
    *before, evaluated = main.nested
    trained = [run for run in before if "kept_valid_accuracy" in run.data.metrics]
    best = max(trained, key=lambda run: (run.data.metrics["kept_valid_accuracy"], -run.data.metrics["kept_valid_loss"]))
    assert evaluated.data.tags["thaw.upstream"] == best.info.run_id
    why = main.parent.data.tags["thaw.evaluated_stage"]
    assert why.startswith(f"The network of {best.data.tags['thaw.stage']}")
    assert why in " ".join(main.printed.split())


def test_the_end_is_a_table_of_stages_and_a_line_on_how_to_look(main):
    printed = main.printed
    for column in ("stage", "time", "valid accuracy", "reused"):
        assert column in printed
    assert "make ui" in printed


def test_it_begins_with_the_plan_and_what_each_stage_is_expected_to_take(main):
    lines = main.printed.splitlines()
    plan_line = r"tf_efficientnet_lite0 on cpu( \(trained in bfloat16\))?, about \d"
    (plan,) = (number for number, line in enumerate(lines) if re.match(plan_line, line))
    assert re.search(
        r": precompute \(64 px\) \d.*, lr_find \d.*, train_head \d.*, lr_find_unfrozen \d.*, fine_tune \d.*, "
        r"resize \(96 px\) \d.*, evaluate \d",
        lines[plan],
    )
    assert "64 pictures of 2 classes" in lines[plan - 1]
    assert lines[plan + 1] == "precompute: started"


def test_where_all_is_reused_the_plan_says_so_and_nothing_is_tried(main_again):
    (plan,) = (line for line in main_again.printed.splitlines() if line.startswith("tf_efficientnet_lite0: "))
    assert plan.count(" reused") == len(STAGES)


def test_where_all_is_reused_nothing_is_loaded_that_computes_or_draws(main_again):
    loaded = main_again.printed.rpartition("loaded:")[2].split()
    assert "mlflow" in loaded
    computing = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "sklearn", "cleanlab", "matplotlib", "optuna"}
    assert not computing & set(loaded)


def test_bad_files_are_set_aside_by_name_and_counted(main):
    printed = main.printed
    assert "set aside: 2" in printed
    assert main.stage("precompute").data.tags["thaw.set_aside"] == "2"
    table = pd.read_csv(main.files("precompute") / "manifest" / "set_aside.csv")
    assert set(table["path"]) == {"functional/broken.png", "functional/notes.txt"}


def test_curves_go_on_over_the_stages_on_the_parent_run(workplace, main):
    parent = main.parent
    history = workplace.client.get_metric_history(parent.info.run_id, "valid/accuracy")
    steps = [point.step for point in history]
    epochs = 2 + 1 + 1 + 1
    assert len(set(steps)) == epochs
    assert steps[:epochs] == sorted(set(steps))
    assert set(steps[epochs:]) == {steps[epochs - 1]}  # evaluate looks at the network where training left it
    rates = {point.step for point in workplace.client.get_metric_history(parent.info.run_id, "rate_head")}
    assert max(rates) == max(steps)


def test_the_parent_run_carries_the_final_figures_and_the_flat_recipe(main):
    parent = main.parent
    for name in ("best_valid_accuracy", "test/accuracy", "test/macro_f1", "test/tta_accuracy", "plain_overfit_gap"):
        assert name in parent.data.metrics
    assert parent.data.metrics["test/accuracy"] == main.stage("evaluate").data.metrics["test/accuracy"]
    assert parent.data.params["fine_tune.cycle_len"] == "1"
    assert not [name for name in parent.data.metrics if name.startswith("system/")], "its nested runs have them"


def test_the_parent_runs_files_hold_the_recipe_from_which_it_can_be_run_again(main):
    recipe = read_recipe(Path(main.parent.info.artifact_uri) / "recipe.yaml")
    assert {key: tracking.format_param(value) for key, value in training_settings(recipe).items()}.items() <= (
        main.parent.data.params.items()
    )


def test_the_parent_runs_page_shows_the_result(workplace, main):
    parent = main.parent
    evaluated = main.stage("evaluate")
    assert parent.data.tags["mlflow.note.content"].startswith(evaluated.data.tags["mlflow.note.content"].strip())
    for tag in ("thaw.verdict", "thaw.model", "thaw.evaluated_on"):
        assert parent.data.tags[tag] == evaluated.data.tags[tag]
    assert "report.html" in files(workplace, parent)
    assert parent.inputs.dataset_inputs[0].dataset.name == "cells"
    assert parent.outputs.model_outputs[0].model_id == evaluated.outputs.model_outputs[0].model_id


def test_the_rate_is_the_finders_suggestion_and_groups_differ_by_the_ratio(main):
    suggested = main.stage("lr_find (unfrozen)").data.metrics["suggestion/lr"]
    tuned = main.stage("fine_tune").data.metrics
    assert tuned["top_rate_head"] == pytest.approx(suggested)
    assert (
        tuned["top_rate_head"]
        == pytest.approx(3 * tuned["top_rate_late"])
        == pytest.approx(9 * tuned["top_rate_early"])
    )


def test_artifacts_hold_what_the_next_stage_and_a_reader_need(workplace, main):
    def stage_files(name, folder=None):
        return files(workplace, main.stage(name), folder)

    assert stage_files("precompute") >= {"activations", "checkpoint", "manifest", "recipe.yaml"}
    assert stage_files("lr_find", "figures") == {"figures/lr_find.png"}
    assert stage_files("fine_tune") >= {"checkpoint", "epochs.csv", "steps.csv", "figures"}
    assert stage_files("evaluate") >= {"predictions.csv", "report.html", "report.md", "label_errors.csv"}
    assert "training_label_errors.csv" in stage_files("evaluate")
    figures = {
        "confusion", "confusion_shares", "top_losses", "confidently_wrong", "most_uncertain", "some_right", "learning",
        "reliability", "label_errors", "near_duplicates", "curves", "operating_points", "embedding", "training_losses",
        "training_label_errors",
    }  # fmt: skip
    assert stage_files("evaluate", "figures") == {f"figures/{name}.png" for name in figures}
    assert not [path for path in workplace.folder.glob("artifacts/**/*") if path.suffix in (".pkl", ".pickle", ".pth")]


def test_only_evaluate_saw_the_test_split(main):
    for run in main.nested[:-1]:
        assert not [name for name in run.data.metrics if name.startswith("test/")]
    manifest = pd.read_csv(main.files("precompute") / "manifest/manifest.csv")
    steps = pd.read_csv(main.files("fine_tune") / "steps.csv")
    trained = (manifest["split"] == "train").sum()
    assert len(steps) == trained // 16


def test_the_dataset_is_an_input_of_the_first_and_the_last_run(main):
    for run in (main.stage("precompute"), main.stage("evaluate")):
        assert run.inputs.dataset_inputs[0].dataset.name == "cells"


def test_the_registered_model_serves_raw_picture_bytes(workplace, main):
    mlflow.set_tracking_uri(f"sqlite:///{workplace.folder}/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model(main.stage("evaluate").data.tags["thaw.model"])
    finally:
        mlflow.set_tracking_uri(None)  # it holds for the whole process
    predictions = pd.read_csv(main.files("evaluate") / "predictions.csv")
    row = predictions[predictions["split"] == "test"].iloc[0]
    answer = model.predict(pd.DataFrame({"image": [(workplace.pictures / row["path"]).read_bytes()]}))
    assert answer["label"][0] == row["predicted"]
    assert answer["confidence"][0] == pytest.approx(row["calibrated_confidence"], abs=1e-4)
    raw = row[["probability/defective", "probability/functional"]].to_numpy(float)[None]
    calibrated = apply_temperature(raw, main.stage("evaluate").data.metrics["temperature"])
    assert answer["probability/defective"][0] == pytest.approx(calibrated[0, 0], abs=1e-4)


def test_the_second_time_every_stage_is_reused(main_again, main):
    assert main_again.printed.count("reused run") == len(STAGES)
    assert main_again.parent.info.run_id != main.parent.info.run_id
    assert main_again.nested == []
    assert main_again.parent.data.metrics["test/accuracy"] == main.parent.data.metrics["test/accuracy"]


@pytest.mark.slow
def test_a_change_in_one_section_reruns_that_stage_and_those_after_it(main_otherwise):
    reused = [line.split(":")[0] for line in main_otherwise.printed.splitlines() if "reused run" in line]
    assert reused == STAGES[:4]


def test_a_stage_runs_alone_on_an_upstream_run(workplace, main):
    unfrozen = main.stage("lr_find (unfrozen)").info.run_id
    workplace.command("fine_tune", f"upstream={unfrozen}", "fine_tune.lr=[1e-5, 1e-4, 1e-3]")
    alone = workplace.runs(stage="fine_tune")[-1]
    assert alone.info.status == "FINISHED"
    assert alone.data.tags["thaw.upstream"] == unfrozen
    assert alone.data.metrics["top_rate_early"] == pytest.approx(1e-5)


@pytest.mark.slow
def test_any_stage_that_trains_can_be_evaluated(workplace, main):
    head = main.stage("train_head").info.run_id
    printed = workplace.command("evaluate", f"upstream={head}", "evaluate.register_as=")
    assert "evaluate: done" in printed
    evaluated = workplace.runs(stage="evaluate")[-1]
    assert evaluated.data.tags["thaw.upstream"] == head
    assert "thaw.model" not in evaluated.data.tags


@pytest.mark.slow
def test_an_upstream_run_of_the_wrong_stage_is_refused_in_a_sentence(workplace, main):
    precompute = main.stage("precompute").info.run_id
    printed = workplace.mlflow_run("-e", "resize", "-P", f"upstream={precompute}", expect=1)
    assert f"resize cannot follow run {precompute}, which is a run of precompute" in printed
    assert "Traceback" not in printed
    failed = [run for run in workplace.runs() if run.info.status == "FAILED"][-1]
    assert "cannot follow" in failed.data.tags["thaw.reason"]


@pytest.mark.slow
def test_a_key_that_the_upstream_run_fixed_cannot_be_changed(workplace, main):
    upstream = f"upstream={main.stage('lr_find (unfrozen)').info.run_id}"
    printed = workplace.mlflow_run("-e", "fine_tune", "-P", upstream, "-P", "data.test_fraction=0.5", expect=1)
    assert "data.test_fraction is fixed by the upstream run" in printed


def test_the_checkpoint_says_how_far_training_has_come(main):
    facts = json.loads((main.files("resize") / "checkpoint" / "checkpoint.json").read_text())
    assert facts["image_px"] == 96
    assert facts["epochs"] == 5
    assert facts["steps"] == pd.read_csv(main.files("resize") / "steps.csv")["step"].max()


def test_figures_are_pictures(main):
    with Image.open(main.files("lr_find") / "figures" / "lr_find.png") as figure:
        assert figure.size[0] > 600
