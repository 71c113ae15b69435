import pytest
import torch
from torch import nn

from pipeline.training.average import MovingAverage, averaged_steps
from pipeline.training.step import StepLoss


def test_the_average_keeps_a_share_at_each_step_which_grows_to_the_decay():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average, expected = MovingAverage(network.state_dict(), 0.5), 0.0
    for step in range(12):
        nn.init.constant_(network.weight, step + 1.0)
        average.update()
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * (step + 1)
        assert average.state["weight"].item() == pytest.approx(expected)
    assert network.weight.item() == 12.0


def test_statistics_are_averaged_and_counters_are_those_of_now():
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network.state_dict(), 0.5)
    network.train()(torch.randn(8, 2))
    average.update()
    state = average.whole_state()
    assert state["num_batches_tracked"] == 1
    torch.testing.assert_close(state["running_mean"], 0.9 * network.running_mean)
    assert not torch.equal(state["running_mean"], network.running_mean)


def test_each_step_is_taken_and_then_averaged():
    network = nn.Linear(1, 1, bias=False)
    average = MovingAverage(network.state_dict(), 0.99)
    losses = StepLoss(torch.tensor(1.0), torch.tensor(2.0))

    def step(inputs, targets, weights):
        nn.init.constant_(network.weight, 5.0)
        return losses

    before = average.state["weight"].item()
    assert averaged_steps(step, average)(torch.zeros(1), torch.zeros(1), None) is losses
    assert average.state["weight"].item() == pytest.approx(0.1 * before + 0.9 * 5.0)


def test_an_average_that_was_saved_goes_on_where_it_was():
    network = nn.Linear(2, 2)
    whole, first = MovingAverage(network.state_dict(), 0.9), MovingAverage(network.state_dict(), 0.9)
    for number in range(6):
        if number == 3:
            saved = {name: tensor.clone() for name, tensor in first.state.items()}
            first = MovingAverage(network.state_dict(), 0.9, steps=3)
            first.restore(saved)
        nn.init.constant_(network.weight, float(number))
        whole.update()
        first.update()
    assert all(torch.equal(whole.state[name], first.state[name]) for name in whole.state)
