"""Training that is broken off goes on in a new run, in the same curve, and ends with the same weights."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from pipeline import tracking, training_log
from pipeline.augment import Augmentation
from pipeline.checkpoint import Checkpoint, build_network
from pipeline.contract import Job
from pipeline.layer_groups import Frozen
from pipeline.network import Network
from pipeline.rates import group_rates
from pipeline.training_log import Phase, train_in_phases
from pipeline.tune import Split, pixel_batches, thaw

pytestmark = pytest.mark.usefixtures("tracking_server")

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8)
SPLIT = Split(np.arange(16), np.arange(16, 24), np.arange(24) % 2)
AUGMENTATION = Augmentation("all", 10.0, 1.1, 0.9, 0.2, 0.75)
EPOCHS_BEFORE, STEPS_BEFORE, STEPS_PER_EPOCH = 3, 12, 4


def phase(network: Network, frozen: Frozen, cycle_epochs: list[int]) -> Callable[[], Phase]:
    def build() -> Phase:
        train, valid = pixel_batches(PIXELS, SPLIT, AUGMENTATION, 4, torch.device("cpu"), 0)
        rates = {"head": 1e-3} if frozen == "body" else group_rates(1e-3, 10)
        return Phase(network, thaw(network, frozen, rates, 0.01), train, valid, cycle_epochs, 0.1, frozen)

    return build


def train(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Two phases of two epochs each, in a run of their own: its id, and the weights in the end."""
    torch.manual_seed(0)
    network = build_network(Checkpoint("tf_efficientnet_lite0", ["a", "b"], 8, 0.5, 32, "crop", grey=False))
    with tracking.open_run("fine_tune", {tracking.STAGE: "fine_tune"}, {}) as run_id:
        phases = [phase(network, "body", [2]), phase(network, "none", [1, 1])]
        train_in_phases(Job(run_id, folder), network, phases, EPOCHS_BEFORE, STEPS_BEFORE)
    return run_id, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def steps_of(run_id: str, metric: str) -> list[int]:
    return [point.step for point in MlflowClient().get_metric_history(run_id, metric)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after training that nothing broke off; made by the first test that asks, within its database."""
    return {}


def uninterrupted(whole: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, torch.Tensor]:
    if not whole:
        whole.update(train(tmp_path / "whole")[1])
    return whole


def break_off(monkeypatch: pytest.MonkeyPatch, epoch: int, how: Callable[[], None]) -> None:
    """Let `how` happen just before this epoch is logged."""
    log_epoch = training_log.log_epoch

    def log_or_break(run_id, record):
        if record.epoch == EPOCHS_BEFORE + epoch:
            how()
        log_epoch(run_id, record)

    monkeypatch.setattr(training_log, "log_epoch", log_or_break)


def crash() -> None:
    raise RuntimeError("out of the blue")


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_after_a_crash_in_any_epoch_training_goes_on(tmp_path, whole, monkeypatch, capsys, epoch):
    expected = uninterrupted(whole, tmp_path)
    with monkeypatch.context() as patched:
        break_off(patched, epoch, crash)
        with pytest.raises(RuntimeError):
            train(tmp_path / "in hand")
    run_id, weights = train(tmp_path / "in hand")
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    every_epoch = [STEPS_BEFORE + STEPS_PER_EPOCH * number for number in (1, 2, 3, 4)]
    assert steps_of(run_id, "train/loss") == steps_of(run_id, "valid/accuracy") == every_epoch
    rates = steps_of(run_id, "lr/head")
    assert rates == list(range(STEPS_BEFORE + 1, STEPS_BEFORE + 17))
    broken = MlflowClient().get_run(run_id).data.tags[tracking.RESUMED]
    assert MlflowClient().get_run(broken).info.status == "FAILED"
    assert f"going on after epoch {EPOCHS_BEFORE + 1}" in capsys.readouterr().out


def test_a_sigterm_acts_when_the_epoch_in_hand_is_kept_and_the_run_is_killed(tmp_path, whole, monkeypatch, capsys):
    expected = uninterrupted(whole, tmp_path)
    with monkeypatch.context() as patched:
        break_off(patched, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "in hand")
    capsys.readouterr()
    run_id, weights = train(tmp_path / "in hand")
    assert f"going on after epoch {EPOCHS_BEFORE + 3}" in capsys.readouterr().out
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    broken = MlflowClient().get_run(run_id).data.tags[tracking.RESUMED]
    assert MlflowClient().get_run(broken).info.status == "KILLED"


def test_training_that_nothing_broke_off_says_nothing_of_going_on(tmp_path, capsys):
    run_id, _ = train(tmp_path / "in hand")
    assert tracking.RESUMED not in MlflowClient().get_run(run_id).data.tags
    assert "going on" not in capsys.readouterr().out
