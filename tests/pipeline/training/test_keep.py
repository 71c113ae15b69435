"""Which weights of a training are kept, also after a kill."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batches
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.training import keep
from pipeline.training.fit import Phase, validate
from pipeline.training.keep import Keep, Trained, best_epoch
from pipeline.training.optim import head_optimizer
from pipeline.training.phases import Training, train_in_phases
from pipeline.training.records import EpochRecord
from pipeline.training.resume import Backups

CPU = torch.device("cpu")
TARGETS = np.arange(48) % 2
POINTS = torch.from_numpy(np.random.default_rng(0).normal(size=(48, 4)) + TARGETS[:, None]).float()
VALID = Batches(lambda rows: POINTS[rows], np.arange(32, 48), TARGETS, 16, CPU)
State = dict[str, Tensor]


def train(
    folder: Path, keep: Keep, after_epoch: Callable[[nn.Module, EpochRecord], None] = lambda *_: None, **limits: Any
) -> tuple[Trained, nn.Module]:
    """Two phases of two cycles of two epochs, at rates so high that the best epoch is none of the last."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    train = Batches(lambda rows: POINTS[rows], np.arange(32), TARGETS, 8, CPU, seed=0)
    options = TrainingOptions(keep=keep, **limits)

    def build() -> Phase:
        return Phase(network, head_optimizer(network, 0.3, 0.01), train, VALID, [2, 2], options=options)

    training = Training(network, Backups(folder, "run"), lambda record: after_epoch(network, record))  # type: ignore[arg-type]
    return train_in_phases(training, [build, build]), network


def state_of(network: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EpochRecord], dict[int, State]]:
    """The records, and the weights after each epoch."""
    states: dict[int, State] = {}

    def note(network: nn.Module, record: EpochRecord) -> None:
        states[record.epoch] = state_of(network)

    trained, network = train(tmp_path_factory.mktemp("whole"), "last", note)
    assert trained.kept_epochs == [8]
    assert same(state_of(network), states[8])
    return trained.records, states


@pytest.mark.parametrize("keep", ["best_loss", "best_accuracy"])
def test_the_weights_of_the_best_epoch_are_kept(tmp_path, states, keep):
    records, by_epoch = states
    trained, network = train(tmp_path, keep)
    best = best_epoch(records, keep)
    assert best is not records[-1]
    assert trained.kept_epochs == [best.epoch]
    assert same(state_of(network), by_epoch[best.epoch])
    assert trained.validated == validate(network, VALID)


def test_the_mean_is_that_of_the_last_weights_of_each_cycle_and_validated_by_itself(tmp_path, states):
    _, by_epoch = states
    trained, network = train(tmp_path, "mean_of_cycles")
    assert trained.kept_epochs == [2, 4, 6, 8]
    for name, tensor in network.state_dict().items():
        ends = [by_epoch[epoch][name].double() for epoch in trained.kept_epochs]
        expected = torch.stack(ends).mean(0) if tensor.is_floating_point() else ends[-1]
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    assert trained.validated == validate(network, VALID)
    assert trained.validated.loss not in [record.valid_loss for record in trained.records]


def test_the_moving_average_is_kept_and_validated_by_itself(tmp_path, states):
    _, by_epoch = states
    trained, network = train(tmp_path, "moving_average")
    assert trained.kept_epochs == [8]
    assert not same(state_of(network), by_epoch[8])
    assert trained.validated == validate(network, VALID)
    assert [record.train_loss for record in trained.records] == [record.train_loss for record in states[0]]


def test_the_average_is_validated_in_the_precision_that_the_recipe_asks_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(keep, "validate", lambda *given: asked.append(given[2]) or validate(*given))
    train(tmp_path, "moving_average", precision="bfloat16")
    assert asked == ["bfloat16"]


@pytest.mark.parametrize(("limits", "epochs"), [({"early_stop_epochs": 1}, 6), ({"max_minutes": 1e-9}, 1)])
def test_training_ends_early_and_stays_ended_after_a_kill(tmp_path, states, limits, epochs):
    losses = [record.valid_loss for record in states[0]]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    assert losses[4] < losses[5]
    for _ in range(2):
        trained, network = train(tmp_path, "last", **limits)
        assert [record.valid_loss for record in trained.records] == losses[:epochs]
        assert same(state_of(network), states[1][epochs])


@pytest.mark.parametrize("epoch", [3, 8])
@pytest.mark.parametrize("keep", ["best_loss", "mean_of_cycles", "moving_average"])
def test_after_a_kill_the_same_weights_are_kept_bit_for_bit(tmp_path, keep, epoch):
    whole, expected = train(tmp_path / "whole", keep)

    def crash(_: nn.Module, record: EpochRecord) -> None:
        if record.epoch == epoch:
            raise RuntimeError("out of the blue")

    with pytest.raises(RuntimeError):
        train(tmp_path / "killed", keep, crash)
    trained, network = train(tmp_path / "killed", keep)
    assert (trained.kept_epochs, trained.validated) == (whole.kept_epochs, whole.validated)
    assert same(state_of(network), state_of(expected))


def test_of_equally_good_epochs_the_other_figure_decides_and_then_the_first():
    def record(epoch: int, loss: float, accuracy: float) -> EpochRecord:
        return EpochRecord(epoch, epoch, 1, 0.5, loss, accuracy, accuracy, 1.0, 1.0, [])

    records = [record(1, 0.5, 0.9), record(2, 0.4, 0.9), record(3, 0.4, 0.9), record(4, 0.4, 0.8)]
    assert best_epoch(records, "best_accuracy").epoch == 2
    assert best_epoch(records, "best_loss").epoch == 2


@pytest.mark.parametrize("killed_in_epoch", [None, 3, 6, 7, 8])
def test_the_weights_that_each_cycle_of_the_last_phase_ends_with_are_snapshots_also_after_a_kill(
    tmp_path, states, killed_in_epoch
):
    _, by_epoch = states

    def crash(_: nn.Module, record: EpochRecord) -> None:
        if record.epoch == killed_in_epoch:
            raise RuntimeError("out of the blue")

    if killed_in_epoch:
        with pytest.raises(RuntimeError):
            train(tmp_path, "last", crash, snapshots=True)
    trained, _ = train(tmp_path, "last", snapshots=True)
    found = dict(Backups(tmp_path, "run").cycle_ends(trained.records))
    assert list(found) == [6, 8]
    assert all(same(state, by_epoch[epoch]) for epoch, state in found.items())


def test_without_the_option_there_are_no_snapshots(tmp_path):
    trained, _ = train(tmp_path, "last")
    assert not dict(Backups(tmp_path, "run").cycle_ends(trained.records))
