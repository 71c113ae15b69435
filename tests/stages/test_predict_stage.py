"""predict as a user types it: a registered model over a folder of pictures."""

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def folder(workplace, first):
    """Nested pictures, two of them broken, beside what is none; and the predictions that evaluate made of them."""
    known = pd.read_csv(f"{first.nested[-1].info.artifact_uri}/predictions.csv")
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


def predict(workplace, data, output, expect=0, model="models:/thaw-smoke@champion"):
    return workplace.mlflow_run(
        "-e", "predict", "-P", f"model={model}", "-P", f"data={data}", "-P", f"output={output}", expect=expect
    )


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
    assert [item.path for item in workplace.client.list_artifacts(run.info.run_id)] == [output.name]
    assert "cannot be opened" in printed


@pytest.mark.slow
def test_a_model_that_is_not_there_is_reported_in_a_sentence(workplace, folder):
    output = workplace.folder / "none.csv"
    printed = predict(workplace, folder[0], output, expect=1, model="models:/nowhere@champion")
    assert "The model models:/nowhere@champion cannot be fetched" in printed
    assert "Traceback" not in printed
    assert not output.exists()
