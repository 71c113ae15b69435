"""Which model is meant. What a logged model consists of is tested in test_serving.py."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel

from pipeline import tracking
from pipeline.system.errors import UserError

pytestmark = pytest.mark.usefixtures("tracking_server")


class Nothing(PythonModel):
    def predict(self, context, model_input: list[str]):
        return model_input


@pytest.fixture
def logged(tmp_path):
    """The ids of a run of main, of its evaluate run, and of the model that this logged; it is the champion of pets."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "checkpoint.json").write_text(json.dumps("pets"))
    with tracking.open_run("evaluate", {tracking.STAGE: "evaluate"}, {}) as evaluated:
        model = mlflow.pyfunc.log_model(
            name="model", python_model=Nothing(), artifacts={"checkpoint": str(tmp_path / "checkpoint")},
            pip_requirements=[],
        )  # fmt: skip
    with tracking.open_run("main", {tracking.STAGE: "main", "thaw.stage.evaluate": evaluated}, {}) as main:
        pass
    version = tracking.register(model.model_uri, "pets", "card")
    MlflowClient().set_registered_model_alias("pets", "champion", version)
    return main, evaluated, model.model_id


def is_the_one(found: tracking.LoggedModel, evaluated: str) -> bool:
    return json.loads((found.checkpoint / "checkpoint.json").read_text()) == "pets" and found.run_id == evaluated


def test_a_model_is_found_by_its_address_its_name_its_runs_and_its_folder(logged, tmp_path):
    main, evaluated, model_id = logged
    folder = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=str(tmp_path / "copy"))
    for given in ("models:/pets@champion", "models:/pets/1", f"models:/{model_id}", "pets", main, evaluated, folder):
        assert is_the_one(tracking.find_model(given), evaluated), given


def test_by_its_name_it_is_the_champion(logged):
    assert tracking.find_model("pets").uri == "models:/pets@champion"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("models:/cows@champion", r"^The model models:/cows@champion cannot be fetched \(.*; give models:/NAME@champ"),
        ("cows", r"^The model models:/cows@champion cannot be fetched \(.*the id of a run of main or evaluate, or the"),
        ("0" * 32, r"^There is no run 0{32} on the tracking server"),
        (".", r"^There is no model in \.: it has no file MLmodel; give the folder that has it\.$"),
    ],
)
def test_what_is_no_model_is_told_in_a_sentence(given, said):
    with pytest.raises(UserError, match=said):
        tracking.find_model(given)


def test_a_run_that_logged_no_model_is_told_so():
    with tracking.open_run("evaluate", {tracking.STAGE: "evaluate"}, {}) as run_id:
        pass
    with pytest.raises(UserError, match=f"^Run {run_id} has logged no model; give the id of a finished run of main"):
        tracking.find_model(run_id)


def test_a_model_of_another_project_is_refused(tmp_path):
    mlflow.pyfunc.save_model(tmp_path / "other", python_model=Nothing(), pip_requirements=[])
    with pytest.raises(UserError, match="is no picture classifier of this project; give one that evaluate logged"):
        tracking.find_model(str(tmp_path / "other"))


def test_a_folder_may_be_in_the_home_folder(logged, tmp_path, monkeypatch):
    mlflow.artifacts.download_artifacts(f"models:/{logged[2]}", dst_path=str(tmp_path / "home" / "copy"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (found,) = Path(tmp_path / "home").rglob("MLmodel")
    assert is_the_one(tracking.find_model(f"~/{found.parent.relative_to(tmp_path / 'home')}"), logged[1])


def test_pictures_that_another_command_logs_at_the_same_moment_are_logged_all_the_same(monkeypatch, tmp_path):
    log_input, others = mlflow.log_input, []

    def after_another(dataset, context):
        """The other's writing falls between this one's look and its writing."""
        if not others:
            others.append(dataset.name)
            told = "UNIQUE constraint failed: datasets.experiment_id, datasets.name, datasets.digest"
            raise MlflowException(told, error_code=BAD_REQUEST)
        log_input(dataset, context)

    monkeypatch.setattr(mlflow, "log_input", after_another)
    with tracking.open_run("precompute", {tracking.STAGE: "precompute"}, {}) as run_id:
        tracking.log_dataset("pets", tmp_path, "d" * 64, "training")
    (logged_input,) = MlflowClient().get_run(run_id).inputs.dataset_inputs
    assert others == [logged_input.dataset.name] == ["pets"]
