import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST

from pipeline.tracking import (
    CHAMPION,
    PictureSet,
    RegistryRefusal,
    name_in_registry,
    promote_if_better,
    register,
)
from pipeline.tracking.models import ALIAS, METRIC, METRIC_VALUE, TEST_CONTENT

pytestmark = pytest.mark.usefixtures("tracking_server")


@pytest.fixture
def judge(tmp_path):
    """Makes a new version that was evaluated so, and gives its outcome and the champion's version after it."""
    client = MlflowClient()
    client.create_registered_model("pets")

    def new(value, content="content", metric="test/accuracy"):
        version = client.create_model_version("pets", str(tmp_path)).version
        outcome = promote_if_better("pets", version, metric, value, content)
        tags = client.get_model_version("pets", version).tags
        assert tags == {TEST_CONTENT: content, METRIC: metric, METRIC_VALUE: repr(value), CHAMPION: outcome}
        return outcome, str(client.get_model_version_by_alias("pets", ALIAS).version)

    return new


def test_the_first_version_is_champion(judge):
    assert judge(0.5) == ("pets version 1 is the champion: there was none (test/accuracy 0.5000).", "1")


def test_a_better_version_on_the_same_pictures_takes_its_place(judge):
    judge(0.5)
    outcome, champion = judge(0.75)
    assert champion == "2"
    assert outcome == (
        "pets version 2 is the new champion: test/accuracy 0.7500 against 0.5000 of version 1, on the same pictures."
    )


@pytest.mark.parametrize("value", [0.5, 0.25])
def test_a_version_that_is_as_good_or_worse_does_not(judge, value):
    judge(0.5)
    outcome, champion = judge(value)
    assert champion == "1"
    assert outcome == f"pets version 1 stays champion: test/accuracy {value:.4f} of version 2 does not beat its 0.5000."


def test_a_version_that_was_evaluated_on_other_pictures_is_not_compared(judge):
    judge(0.5)
    outcome, champion = judge(0.9, content="other")
    assert champion == "1"
    assert outcome.startswith("pets version 1 stays champion: it was evaluated on other pictures")


def test_a_version_that_was_evaluated_by_another_metric_is_not_compared(judge):
    judge(0.5)
    outcome, champion = judge(0.9, metric="test/macro_f1")
    assert champion == "1"
    assert (
        outcome == "pets version 1 stays champion: it was evaluated by test/accuracy, and version 2 by test/macro_f1."
    )


def test_a_champion_that_was_named_by_hand_is_not_overthrown(judge, tmp_path):
    client = MlflowClient()
    by_hand = client.create_model_version("pets", str(tmp_path)).version
    client.set_registered_model_alias("pets", ALIAS, by_hand)
    assert judge(0.9)[1] == str(by_hand)


def test_where_the_champion_was_deleted_the_next_version_is_champion(judge):
    judge(0.5)
    MlflowClient().delete_model_version("pets", "1")
    assert judge(0.25)[1] == "2"


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, error: Exception) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, call, refused)


def champion() -> str:
    return str(MlflowClient().get_registered_model("pets").aliases[ALIAS])


@pytest.mark.parametrize("error", [INTERNAL_ERROR, PERMISSION_DENIED])
def test_a_champion_that_cannot_be_looked_up_stays_and_a_sentence_says_so(judge, monkeypatch, error):
    judge(0.5)
    refuse(monkeypatch, "get_model_version_by_alias", MlflowException("Out of order", error))
    outcome = promote_if_better("pets", "1", "test/accuracy", 0.9, "content")
    assert outcome.startswith(
        "The model registry does not tell which version of pets is its champion (Out of order); the champion is as it "
        "was, and python -c"
    )
    assert "test/accuracy 0.9000" in outcome
    assert champion() == "1"


def test_an_answer_of_another_program_is_not_taken_for_no_champion(judge, monkeypatch):
    judge(0.5)
    refuse(monkeypatch, "get_model_version_by_alias", ConnectionError("reset"))
    assert "(reset); the champion is as it was" in promote_if_better("pets", "1", "test/accuracy", 0.9, "content")


def test_a_registry_that_knows_no_such_thing_has_no_champion(judge, monkeypatch):
    judge(0.5)
    refuse(monkeypatch, "get_model_version_by_alias", MlflowException("Not found", RESOURCE_DOES_NOT_EXIST))
    assert "is the champion: there was none" in promote_if_better("pets", "1", "test/accuracy", 0.1, "content")


@pytest.mark.parametrize("call", ["set_model_version_tag", "set_registered_model_alias"])
def test_what_a_read_only_registry_refuses_is_in_the_sentence(judge, monkeypatch, call):
    judge(0.5)
    second = MlflowClient().create_model_version("pets", "file").version
    refuse(monkeypatch, call, MlflowException("Read only", PERMISSION_DENIED))
    outcome = promote_if_better("pets", second, "test/accuracy", 0.9, "content")
    assert outcome.startswith("The model registry does not ")
    assert "(Read only); the champion is as it was" in outcome
    assert f'set_registered_model_alias("pets", "champion", "{second}")' in outcome
    assert champion() == "1"


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
