"""Training in hand, on a real body: kept, found, damaged, restored."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

from pipeline.augment import Augmentation
from pipeline.batches import Batches
from pipeline.checkpoint import Checkpoint, build_network
from pipeline.errors import UserError
from pipeline.fit import EpochRecord, Position, fit
from pipeline.in_hand import KEPT, TENSORS, Checkpoints
from pipeline.network import Network
from pipeline.rates import group_rates
from pipeline.tune import Split, pixel_batches, thaw

CPU = torch.device("cpu")
SIZE_PX = 32
CYCLES = [1, 1]
AUGMENTATION = Augmentation("all", 10.0, 1.1, 0.9, 0.2, 0.75)


def small_network() -> Network:
    torch.manual_seed(0)
    return build_network(Checkpoint("tf_efficientnet_lite0", ["a", "b"], 8, 0.5, SIZE_PX, "crop", grey=False))


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


@pytest.fixture(scope="module")
def whole(batches):
    """The state and the records of training that nothing broke off."""
    network = small_network()
    records = list(fit(network, optimizer_of(network), *batches, CYCLES))
    return state_of(network), records


def train_until(folder: Path, batches: tuple[Batches, Batches], steps: int) -> None:
    """Train and keep every step and epoch, and stop after `steps` steps without a word."""
    network = small_network()
    optimizer = optimizer_of(network)
    checkpoints = Checkpoints(folder, "first")
    records: list[EpochRecord] = []
    count = itertools.count(1)
    for moment in fit(network, optimizer, *batches, CYCLES, pauses=lambda: True):
        if isinstance(moment, EpochRecord):
            records.append(moment)
            checkpoints.keep_after_epoch(network, optimizer, 0, Position(len(records)), records, surely=True)
        else:
            checkpoints.keep(network, optimizer, 0, moment, len(records))
            if next(count) == steps:
                return


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_a_new_process_ends_with_the_same_weights_bit_for_bit(tmp_path, batches, whole, steps):
    train_until(tmp_path, batches, steps)
    kept = Checkpoints(tmp_path, "second").newest()
    assert kept is not None
    assert (kept.run_id, kept.position.epochs * 4 + len(kept.position.losses)) == ("first", steps)
    network = small_network()
    torch.manual_seed(99)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    optimizer = optimizer_of(network)
    kept.restore(network, optimizer)
    records = [*kept.records, *fit(network, optimizer, *batches, CYCLES, start=kept.position)]
    assert same(state_of(network), whole[0])
    assert without_times(records) == without_times(whole[1])


def test_an_optimizer_is_restored_in_the_memory_format_that_it_trains_in(tmp_path, batches):
    train_until(tmp_path, batches, 2)
    network = small_network()
    optimizer = optimizer_of(network)
    kept = Checkpoints(tmp_path, "second").newest()
    assert kept is not None
    kept.restore(network, optimizer)
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].stride() == state["exp_avg_sq"].stride() == parameter.stride()


def test_where_nothing_was_kept_there_is_nothing_to_go_on_from(tmp_path):
    assert Checkpoints(tmp_path / "none", "run").newest() is None


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "epochs"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_it_taken(tmp_path, batches, capsys, damage):
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
    kept = Checkpoints(tmp_path, "second").newest()
    assert str(newest) in capsys.readouterr().out
    if damage == "epochs":  # both need the record that is gone
        assert kept is None
    else:
        assert kept is not None
        assert len(kept.position.losses) == 1, before


def test_a_half_written_checkpoint_is_never_taken(tmp_path, batches, monkeypatch):
    train_until(tmp_path, batches, 2)
    network = small_network()
    checkpoints = Checkpoints(tmp_path, "second")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.in_hand.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.keep(network, optimizer_of(network), 0, Position(1), 1)
    kept = Checkpoints(tmp_path, "third").newest()
    assert kept is not None
    assert (kept.run_id, len(kept.position.losses)) == ("first", 2)


def test_two_checkpoints_are_kept_and_no_more(tmp_path, batches):
    train_until(tmp_path, batches, 8)
    assert len(list(tmp_path.glob("0*"))) == KEPT == 2


def test_weights_that_are_no_numbers_never_replace_good_ones(tmp_path, batches):
    train_until(tmp_path, batches, 2)
    network = small_network()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="lower the stage's lr"):
        Checkpoints(tmp_path, "second").keep(network, optimizer_of(network), 0, Position(1), 1)
    kept = Checkpoints(tmp_path, "third").newest()
    assert kept is not None
    assert kept.run_id == "first"


def test_a_checkpoint_is_due_each_minute_and_takes_a_hundredth_of_the_time_at_most(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("pipeline.in_hand.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, "run")
    assert not checkpoints.are_due()
    now[0] += 61
    assert checkpoints.are_due()

    def slow(*_: object) -> None:
        now[0] += 2

    monkeypatch.setattr("pipeline.in_hand.publish", slow)
    network = small_network()
    checkpoints.keep(network, optimizer_of(network), 0, Position(), 0)
    now[0] += 190
    assert not checkpoints.are_due()
    now[0] += 11
    assert checkpoints.are_due()
