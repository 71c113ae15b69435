"""Backups of training on a real body: saved, found, damaged, restored."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches
from pipeline.data.loader import Split, pixel_batches
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.network import Network
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.fit import Phase, TrainingProgress, fit
from pipeline.training.keep import Snapshot
from pipeline.training.optim import AS_EVER, thaw
from pipeline.training.records import EpochRecord
from pipeline.training.resume import KEPT, TENSORS, Backups, TrainingState
from pipeline.training.schedule import group_rates

CPU = torch.device("cpu")
SIZE_PX = 32
CYCLES = [1, 1]
AUGMENTATION = Augmentation("all", 10.0, 1.1, 0.9, 0.2, 0.75)


def small_network() -> Network:
    torch.manual_seed(0)
    return build_network(Checkpoint("test_efficientnet", ["a", "b"], 8, 0.5, SIZE_PX, "crop", grey=False))


def optimizer_of(network: Network) -> Optimizer:
    return thaw(network, "none", group_rates(1e-3, 10), 0.01)


@pytest.fixture(scope="module")
def batches() -> tuple[Batches, Batches]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    split = Split(np.arange(16), np.arange(16, 24), np.arange(24) % 2)
    return pixel_batches(pixels, split, AUGMENTATION, 4, CPU, 0)


def state_of(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_times(records: list[EpochRecord]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0, images_per_second=0.0) for record in records]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def options(request: pytest.FixtureRequest) -> TrainingOptions:
    return TrainingOptions(precision=request.param)


@pytest.fixture(scope="module")
def whole(batches, options):
    """The state and the records of training without a break."""
    network = small_network()
    records = list(fit(Phase(network, optimizer_of(network), *batches, CYCLES, options=options)))
    return state_of(network), records


def train_until(folder: Path, batches: tuple[Batches, Batches], steps: int, options: TrainingOptions = AS_EVER) -> None:
    """Train, save every step and epoch, and stop after `steps` steps as if killed."""
    network = small_network()
    optimizer = optimizer_of(network)
    state = TrainingState(network, optimizer)
    backups = Backups(folder, "first")
    records: list[EpochRecord] = []
    count = itertools.count(1)
    for moment in fit(Phase(network, optimizer, *batches, CYCLES, options=options), pauses=lambda: True):
        if isinstance(moment, EpochRecord):
            records.append(moment)
            backups.save_after_epoch(state, 0, TrainingProgress(len(records)), records, surely=True)
        else:
            backups.save(state, 0, moment, len(records))
            if next(count) == steps:
                return


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_a_new_process_ends_with_the_same_weights_bit_for_bit(tmp_path, batches, options, whole, steps):
    train_until(tmp_path, batches, steps, options)
    backup = Backups(tmp_path, "second").earlier
    assert backup is not None
    assert (backup.run_id, backup.progress.epochs * 4 + len(backup.progress.losses)) == ("first", steps)
    network = small_network()
    torch.manual_seed(99)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    optimizer = optimizer_of(network)
    backup.restore(network, optimizer)
    phase = Phase(network, optimizer, *batches, CYCLES, options=options)
    records = [*backup.records, *fit(phase, start=backup.progress)]
    assert same(state_of(network), whole[0])
    assert without_times(records) == without_times(whole[1])


def test_an_optimizer_is_restored_in_the_memory_format_that_it_trains_in(tmp_path, batches):
    train_until(tmp_path, batches, 2)
    network = small_network()
    optimizer = optimizer_of(network)
    backup = Backups(tmp_path, "second").earlier
    assert backup is not None
    backup.restore(network, optimizer)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()


def test_the_weights_to_be_kept_are_part_of_a_backup(tmp_path):
    network = torch.nn.Linear(2, 2)
    snapshot = Snapshot([3, 5], {name: tensor.detach() + 1 for name, tensor in network.named_parameters()})
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    Backups(tmp_path, "first").save(TrainingState(network, optimizer, snapshot), 0, TrainingProgress(), 0)
    backup = Backups(tmp_path, "second").earlier
    assert backup is not None
    assert backup.snapshot.epochs == [3, 5]
    assert same(backup.snapshot.state, snapshot.state)


def test_without_a_backup_there_is_nothing_to_resume_from(tmp_path):
    assert Backups(tmp_path / "none", "run").earlier is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "epochs"])
def test_a_damaged_backup_is_reported_and_the_one_before_it_used(tmp_path, batches, capsys, damage):
    train_until(tmp_path, batches, 6)
    *_, before, newest = sorted(tmp_path.glob("0*"))
    file = newest / TENSORS
    if damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        file.unlink()
    else:
        (tmp_path / "epochs" / "00000001.json").write_text("{", encoding="utf-8")
    backup = Backups(tmp_path, "second").earlier
    assert str(newest) in capsys.readouterr().out
    if damage == "epochs":  # both need the record that is gone
        assert backup is None
    else:
        assert backup is not None
        assert len(backup.progress.losses) == 1, before


def test_a_half_written_backup_is_never_used(tmp_path, batches, monkeypatch):
    train_until(tmp_path, batches, 2)
    network = small_network()
    backups = Backups(tmp_path, "second")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.training.resume.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        backups.save(TrainingState(network, optimizer_of(network)), 0, TrainingProgress(1), 1)
    backup = Backups(tmp_path, "third").earlier
    assert backup is not None
    assert (backup.run_id, len(backup.progress.losses)) == ("first", 2)


def test_two_backups_are_kept_and_no_more(tmp_path, batches):
    train_until(tmp_path, batches, 8)
    assert len(list(tmp_path.glob("0*"))) == KEPT == 2


def test_weights_that_are_no_numbers_never_replace_good_ones(tmp_path, batches):
    train_until(tmp_path, batches, 2)
    network = small_network()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="lower the stage's lr"):
        Backups(tmp_path, "second").save(TrainingState(network, optimizer_of(network)), 0, TrainingProgress(1), 1)
    backup = Backups(tmp_path, "third").earlier
    assert backup is not None
    assert backup.run_id == "first"


def test_a_backup_is_due_each_minute_and_takes_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("pipeline.training.resume.time.monotonic", lambda: now[0])
    backups = Backups(tmp_path, "run")
    assert not backups.are_due()
    now[0] += 61
    assert backups.are_due()

    def slow(*_: object) -> None:
        now[0] += 2

    monkeypatch.setattr("pipeline.training.resume.publish", slow)
    network = small_network()
    backups.save(TrainingState(network, optimizer_of(network)), 0, TrainingProgress(), 0)
    now[0] += 190
    assert not backups.are_due()
    now[0] += 11
    assert backups.are_due()
