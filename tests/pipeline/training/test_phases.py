"""Training that is stopped resumes in the same curve, and ends with the same weights."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.augment import Augmentation
from pipeline.data.loader import Split, pixel_batches
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.training.fit import Phase
from pipeline.training.optim import thaw
from pipeline.training.phases import Training, train_in_phases
from pipeline.training.records import EpochRecord
from pipeline.training.resume import Backups
from pipeline.training.schedule import group_rates

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8)
SPLIT = Split(np.arange(16), np.arange(16, 24), np.arange(24) % 2)
AUGMENTATION = Augmentation("all", 10.0, 1.1, 0.9, 0.2, 0.75)
EPOCHS_BEFORE, STEPS_BEFORE, STEPS_PER_EPOCH = 3, 12, 4
Weights = dict[str, torch.Tensor]


def phase(network: Network, frozen: Frozen, cycle_epochs: list[int]) -> Callable[[], Phase]:
    def build() -> Phase:
        train, valid = pixel_batches(PIXELS, SPLIT, AUGMENTATION, 4, torch.device("cpu"), 0)
        rates = {"head": 1e-3} if frozen == "body" else group_rates(1e-3, 10)
        return Phase(network, thaw(network, frozen, rates, 0.01), train, valid, cycle_epochs, 0.1)

    return build


def train(
    folder: Path, run_id: str, after_epoch: Callable[[EpochRecord], None] = lambda _: None
) -> tuple[list[EpochRecord], Weights]:
    """Two phases of two epochs each: the records, and the weights in the end."""
    torch.manual_seed(0)
    network = build_network(Checkpoint("test_efficientnet", ["a", "b"], 8, 0.5, 32, "crop", grey=False))
    phases = [phase(network, "body", [2]), phase(network, "none", [1, 1])]
    training = Training(network, Backups(folder, run_id), after_epoch, EPOCHS_BEFORE, STEPS_BEFORE)
    records = train_in_phases(training, phases).records
    return records, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def without_times(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0, images_per_second=0.0) for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[EpochRecord], Weights]:
    """The records and weights of training without a break."""
    return train(tmp_path_factory.mktemp("whole"), "whole")


def at_epoch(number: int, act: Callable[[], None]) -> Callable[[EpochRecord], None]:
    def after_epoch(record: EpochRecord) -> None:
        if record.epoch == EPOCHS_BEFORE + number:
            act()

    return after_epoch


def crash() -> None:
    raise RuntimeError("out of the blue")


def assert_same_result(found: tuple[list[EpochRecord], Weights], whole: tuple[list[EpochRecord], Weights]) -> None:
    assert without_times(found[0]) == without_times(whole[0])
    assert all(torch.equal(found[1][name], tensor) for name, tensor in whole[1].items())


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_after_a_crash_in_any_epoch_training_resumes(tmp_path, whole, capsys, epoch):
    with pytest.raises(RuntimeError):
        train(tmp_path, "first", at_epoch(epoch, crash))
    seen: list[EpochRecord] = []
    found = train(tmp_path, "second", seen.append)
    assert_same_result(found, whole)
    assert seen == found[0]
    assert [record.step for record in seen] == [STEPS_BEFORE + STEPS_PER_EPOCH * number for number in (1, 2, 3, 4)]
    steps = [one.step for record in seen for one in record.steps]
    assert steps == list(range(STEPS_BEFORE + 1, STEPS_BEFORE + 17))
    assert f"resumed after epoch {EPOCHS_BEFORE + 1}, from the backup of run first" in capsys.readouterr().out


def test_a_sigterm_takes_effect_once_the_current_epoch_has_been_saved(tmp_path, whole, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "first", at_epoch(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    capsys.readouterr()
    found = train(tmp_path, "second")
    assert f"resumed after epoch {EPOCHS_BEFORE + 3}, from the backup of run first" in capsys.readouterr().out
    assert_same_result(found, whole)


def test_training_without_a_break_reports_no_resumption(tmp_path, capsys):
    train(tmp_path, "only")
    assert "resumed" not in capsys.readouterr().out
