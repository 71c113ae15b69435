import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST

from pipeline.tracking import CHAMPION, promote_if_better
from pipeline.tracking.names import CHAMPION_ALIAS
from pipeline.tracking.registry.promotion import METRIC, METRIC_VALUE, TEST_CONTENT
from tests.pipeline.tracking.registry.refusals import refuse

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
        return outcome, str(client.get_model_version_by_alias("pets", CHAMPION_ALIAS).version)

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
    client.set_registered_model_alias("pets", CHAMPION_ALIAS, by_hand)
    assert judge(0.9)[1] == str(by_hand)


def test_where_the_champion_was_deleted_the_next_version_is_champion(judge):
    judge(0.5)
    MlflowClient().delete_model_version("pets", "1")
    assert judge(0.25)[1] == "2"


def champion() -> str:
    return str(MlflowClient().get_registered_model("pets").aliases[CHAMPION_ALIAS])


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
