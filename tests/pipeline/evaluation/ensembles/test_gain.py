import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.ensembles.gain import accuracy_and_loss, describe_ensemble, ensemble_metrics

MEMBERS = pd.DataFrame({"network": ["first", "second"], "accuracy": [0.8, 0.9], "loss": [0.5, 0.3]})


def test_accuracy_and_loss_are_those_of_the_true_classes():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    accuracy, loss = accuracy_and_loss(probabilities, np.array([0, 0, 1]))
    assert accuracy == pytest.approx(1 / 3)
    assert loss == pytest.approx(-np.log([0.9, 0.4, 0.5]).mean())


def test_each_network_is_logged_beside_the_gain_over_their_mean_and_over_the_best():
    assert ensemble_metrics(MEMBERS, 0.92) == pytest.approx(
        {
            "ensemble_networks": 2,
            "ensemble_valid_accuracy_1": 0.8,
            "ensemble_valid_accuracy_2": 0.9,
            "ensemble_valid_loss_1": 0.5,
            "ensemble_valid_loss_2": 0.3,
            "ensemble_valid_gain": 0.07,
            "ensemble_valid_gain_over_best": 0.02,
        }
    )


@pytest.mark.parametrize(
    ("accuracy", "loss", "words"),
    [
        (0.91, 0.4, "the ensemble is better than each of them."),
        (0.9, 0.4, "better than they are on average, though second alone is right at least as often."),
        (0.84, 0.2, "better than they are on average, though second alone is right at least as often."),
        (0.85, 0.4, "the ensemble is no better: second alone does as well"),
        (0.7, 0.3, "the ensemble is no better"),
    ],
)
def test_a_sentence_says_whether_the_ensemble_is_better(accuracy, loss, words):
    sentence = describe_ensemble(MEMBERS, accuracy, loss)
    assert words in sentence
    assert f"their mean has an accuracy of {accuracy:.4f} and a log-loss of {loss:.4f}; by themselves" in sentence
    assert "0.8000 to 0.9000 (on average 0.8500) and 0.3000 to 0.5000" in sentence


@pytest.mark.parametrize("members", [MEMBERS[:1], pd.DataFrame()])
def test_nothing_is_said_of_one_network(members):
    assert describe_ensemble(members, 0.8, 0.5) == ""
    assert ensemble_metrics(members, 0.8) == {}
