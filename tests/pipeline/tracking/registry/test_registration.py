import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED

from pipeline.tracking import PictureSet, RegistryRefusal, name_in_registry, register
from tests.pipeline.tracking.registry.refusals import refuse

pytestmark = pytest.mark.usefixtures("tracking_server")


@pytest.fixture
def logged(tmp_path):
    """The address of a folder that can be registered as a model."""
    (tmp_path / "logged").mkdir()
    return str(tmp_path / "logged")


def test_the_name_of_a_prompt_takes_no_model(logged):
    mlflow.MlflowClient().create_prompt("greeting")
    with pytest.raises(RegistryRefusal, match=r"does not take a model of the name greeting \(.*taken by a prompt"):
        register(logged, "greeting", "")
    assert not MlflowClient().search_model_versions("name = 'greeting'")


def test_a_model_that_may_not_be_created_is_refused_in_a_sentence(logged, monkeypatch):
    refuse(monkeypatch, "create_registered_model", MlflowException("Permission denied", PERMISSION_DENIED))
    with pytest.raises(RegistryRefusal, match=r"does not take a model of the name farm \(Permission denied\)"):
        register(logged, "farm", "")


def test_a_description_that_is_refused_does_not_take_the_version_with_it(logged, monkeypatch, capsys):
    refuse(monkeypatch, "update_model_version", MlflowException("Too long", PERMISSION_DENIED))
    assert register(logged, "farm", "card", {"a": "b"}) == "1"
    assert MlflowClient().get_model_version("farm", "1").tags == {"a": "b"}
    assert "description of farm version 1 (Too long); its card is model_card.md" in " ".join(
        capsys.readouterr().err.split()
    )


def pictures(first: int, count: int = 8, source: str = "/data") -> PictureSet:
    names = tuple(f"{one:016x}" for one in range(first, first + count))
    return PictureSet(f"{first:08x}{count:08x}", names, source)


def test_a_set_keeps_its_name_also_moved_or_grown_and_another_set_gets_another(logged):
    def join(of: PictureSet) -> str:
        name = name_in_registry("thaw-train", of)
        register(logged, name, "", of.tags)
        return name

    assert join(pictures(0)) == "thaw-train"
    assert join(pictures(0, source="/moved")) == "thaw-train"
    assert join(pictures(0, 12)) == "thaw-train"
    assert join(pictures(100)) == "thaw-train-00000064", "all its pictures were exchanged"
    assert join(pictures(0, 9, source="/other")) == "thaw-train-00000000", "most pictures shared, but another folder"
    assert join(pictures(100, 10)) == "thaw-train-00000064"
    assert join(pictures(0)) == "thaw-train"


def test_models_without_a_set_keep_their_name(logged):
    register(logged, "thaw-farm", "")
    assert name_in_registry("thaw-farm", pictures(0)) == "thaw-farm"


def test_a_registry_that_cannot_be_searched_refuses(monkeypatch):
    refuse(monkeypatch, "search_registered_models", MlflowException("Out of order", INTERNAL_ERROR))
    with pytest.raises(
        RegistryRefusal, match=r"tell which pictures models of the name thaw-farm are of \(Out of order"
    ):
        name_in_registry("thaw-farm", pictures(0))
