"""predict as a user types it: a registered model over a folder of pictures."""

import io
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from pipeline import tracking
from pipeline.evaluation.calibration import apply_temperature
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.classifier import save_classifier
from pipeline.system.errors import UserError
from stages.tools import predict as predict_stage
from tests.drawn_pictures import draw_pictures
from tests.picture_server import picture_server


@pytest.fixture(scope="module")
def folder(workplace, main):
    """Nested pictures, two of them broken, beside what is none; and the predictions that evaluate made of them."""
    known = pd.read_csv(main.files("evaluate") / "predictions.csv")
    evaluated = known[known["split"] == "test"].reset_index(drop=True)
    folder = workplace.folder / "new pictures"
    for index, path in enumerate(evaluated["path"]):
        inner = folder / ("a/b" if index % 2 else "")
        inner.mkdir(parents=True, exist_ok=True)
        shutil.copy(workplace.pictures / path, inner / f"{index:03}.png")
    file = io.BytesIO()
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(file, "PNG")
    (folder / "cut.png").write_bytes(file.getvalue()[:60])
    (folder / "a" / "none.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder, evaluated


def predict(workplace, data, output, *settings, expect=0, model="models:/thaw-smoke@champion"):
    given = f"model={model}", f"data={data}", f"output={output}", *settings
    return workplace.command("predict", *given, expect=expect)


def test_every_picture_is_a_row_and_broken_ones_say_why(workplace, folder):
    pictures, evaluated = folder
    output = workplace.folder / "answers.parquet"
    printed = predict(workplace, pictures, output, model="models:/thaw-smoke/1")
    table = pd.read_parquet(output)
    assert list(table) == ["path", "label", "confidence", "probability/defective", "probability/functional", "error"]
    table = table.set_index("path")
    for index, row in evaluated.iterrows():
        found = table.loc[f"a/b/{index:03}.png" if index % 2 else f"{index:03}.png"]
        assert found["label"] == row["predicted"]
        assert found["confidence"] == pytest.approx(row["calibrated_confidence"], abs=1e-4)
    broken = table.loc[["a/none.jpg", "cut.png"]]
    assert broken["label"].isna().all()
    assert (broken["error"].str.len() > 5).all()
    assert len(table) == len(evaluated) + 2
    run = workplace.runs(stage="predict")[-1]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["pictures/cannot be opened"] == 2
    counted = {name: value for name, value in run.data.metrics.items() if name.startswith("pictures/")}
    assert sum(counted.values()) == len(table)
    assert [item.path for item in workplace.client.list_artifacts(run.info.run_id)] == [output.name, "labels"]
    assert "cannot be opened" in printed


def test_with_tta_the_answers_are_those_that_evaluate_had_with_it(workplace, main, folder):
    pictures, evaluated = folder
    output = workplace.folder / "with tta.csv"
    predict(workplace, pictures, output, "tta=true", model="models:/thaw-smoke/1")
    found = pd.read_csv(output).set_index("path")
    temperature = main.stage("evaluate").data.metrics["temperature"]
    names = ["probability/defective", "probability/functional"]
    wanted = apply_temperature(evaluated[[f"tta_{name}" for name in names]].to_numpy(float), temperature)
    of = [f"a/b/{index:03}.png" if index % 2 else f"{index:03}.png" for index in range(len(evaluated))]
    np.testing.assert_allclose(found.loc[of, names], wanted, atol=1e-4)
    assert found.loc[of, "label"].tolist() == evaluated["tta_predicted"].tolist()
    assert np.abs(wanted - evaluated[names].to_numpy()).max() > 1e-3, "the views have to matter"


@pytest.mark.slow
def test_a_model_that_is_not_there_is_reported_in_a_sentence(workplace, folder):
    output = workplace.folder / "none.csv"
    printed = predict(workplace, folder[0], output, expect=2, model="models:/nowhere@champion")
    assert "The model models:/nowhere@champion cannot be fetched" in printed
    assert "Traceback" not in printed
    assert not output.exists()


@pytest.fixture
def predicted(tracking_server, tmp_path, monkeypatch):
    """Runs predict in this process with a model that gives every picture the label 🐱 or 🐶; gives the run."""
    labels = ["🐱", "🐶", "🐱"]
    answers = pd.DataFrame({"path": ["a\r.png", "b,b.png", "c.png"], "label": labels, "error": [""] * 3})
    model = SimpleNamespace(checkpoint=SimpleNamespace(classes=["🐱", "🐶"]), extensions=(".tga",))
    (tmp_path / "photos").mkdir()
    for name in ("a.TGA", "b.png"):
        (tmp_path / "photos" / name).touch()

    def predict_together(folder, classifier, root, pictures, batch_size, with_tta):
        assert [path.name for path in pictures] == ["a.TGA"], "the endings are those of the model's own recipe"
        return answers

    monkeypatch.setattr(predict_stage, "load_classifier", lambda *_, **__: model)
    monkeypatch.setattr(tracking, "find_model", lambda given: tracking.LoggedModel(given, tmp_path, None))
    monkeypatch.setattr(predict_stage, "predict_together", predict_together)

    def run(output):
        predict_stage.run("models:/pets/1", str(tmp_path / "photos"), output, 32, "cpu", False, 1.0)
        (run,) = MlflowClient().search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
        return run, answers

    return run


def test_any_labels_have_counts_of_their_own_and_a_table_of_their_names(predicted, tmp_path):
    run, answers = predicted(tmp_path / "out.csv")
    counts = {name: value for name, value in run.data.metrics.items() if name.startswith("pictures/")}
    assert sorted(counts.values()) == [0, 1, 2]
    names = pd.read_csv(f"{run.info.artifact_uri}/labels/labels.csv")
    assert {row.label: counts[row.metric] for row in names.itertuples()} == {"🐱": 2, "🐶": 1, "cannot be opened": 0}
    for table in (tmp_path / "out.csv", f"{run.info.artifact_uri}/out.csv"):
        assert pd.read_csv(table)["path"].tolist() == answers["path"].tolist()


def test_what_was_predicted_is_kept_by_the_run_if_the_output_cannot_be_written(predicted, tmp_path):
    output = tmp_path / "gone" / "out.csv"  # its folder was removed meanwhile
    with pytest.raises(UserError, match=r"cannot be written to .* \(.*\); it is kept as out\.csv among"):
        predicted(output)
    (run,) = MlflowClient().search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
    assert run.info.status == "FAILED"
    assert len(pd.read_csv(f"{run.info.artifact_uri}/out.csv")) == 3
    assert len(run.data.metrics) == 3


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The address of a model."""
    facts = Checkpoint("test_resnet", ["cat", "dog"], 8, 0.5, 32, "crop", False)
    save_checkpoint(build_network(facts).eval(), facts, tmp_path / "checkpoint")
    save_classifier([tmp_path / "checkpoint"], 1.0, tmp_path / "model")
    monkeypatch.setattr(tracking, "find_model", lambda given: tracking.LoggedModel(given, tmp_path / "model", None))
    return "models:/pets/1"


def test_pictures_of_a_table_at_an_address_are_fetched_and_named_by_their_own(tracking_server, cache, tmp_path, model):
    served = tmp_path / "served"
    draw_pictures(served)
    paths = ["dot/1.png", "circle/0.png", "none.png"]
    (served / "some.csv").write_text("\n".join(["path", *paths]))
    with picture_server(served) as server:
        for data, output in ((served / "some.csv", "here.csv"), (f"{server.uri}/some.csv", "away.csv")):
            predict_stage.run(model, str(data), tmp_path / output, 2, "cpu", False, 1.0)
        here, away = (pd.read_csv(tmp_path / name, keep_default_na=False) for name in ("here.csv", "away.csv"))
        assert here["path"].tolist() == paths
        assert away["path"].tolist() == [f"{server.uri}/{path}" for path in paths]
    assert away.drop(columns=["path", "error"]).equals(here.drop(columns=["path", "error"]))
    assert [error[:22] for error in away["error"]] == ["", "", "cannot be fetched: 404"]
    assert "No such file" in here["error"][2]


def test_pictures_at_addresses_that_take_too_much_are_refused(tracking_server, cache, tmp_path, model):
    served = tmp_path / "served"
    draw_pictures(served)
    (served / "some.csv").write_text("path\ndot/1.png\n")
    with picture_server(served) as server, pytest.raises(UserError, match="max_download_gib = 0 allows"):
        predict_stage.run(model, f"{server.uri}/some.csv", tmp_path / "out.csv", 2, "cpu", False, 0.0)
