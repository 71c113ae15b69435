import pytest
from mlflow import MlflowClient

from pipeline.tracking import CHAMPION, promote_if_better
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
