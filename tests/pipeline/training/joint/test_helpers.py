"""Two and three processes train as one does: the same losses, step by step, the same weights, and the same curve."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data.augment import Augmentation
from pipeline.data.loader import Split
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.ranks.team import processes
from pipeline.recipe.schema import LrFind
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.training.joint.helpers import find_together
from pipeline.training.joint.pictures import PicturePhase
from pipeline.training.phases import Training, train_in_phases
from pipeline.training.records import EpochRecord
from pipeline.training.resume import Backups
from pipeline.training.schedule import group_rates
from tests.several_processes import run_led

PIXELS = np.random.default_rng(0).integers(0, 255, (29, 32, 32, 3)).astype(np.uint8)
TARGETS = np.arange(29) % 3
WEIGHTS = np.linspace(0.5, 2.0, 29).astype(np.float32)
SPLIT = Split(np.arange(22), np.arange(22, 29), TARGETS)
PLAIN = Augmentation("all", 10.0, 1.1, 0.9, 0.2, 0.75)
FIND = LrFind(iterations=20, start_lr=1e-4, end_lr=1e-2)


def in_float32(**options: Any) -> TrainingOptions:
    """Options by which several processes train as one but for the last digits, on every machine."""
    return TrainingOptions(precision="float32", **options)


IN_FLOAT32 = in_float32()


@dataclass(frozen=True)
class Setting:
    """What is trained: a phase on a backbone, with what differs from the plain one."""

    backbone: str = "test_resnet"
    batch_size: int = 7
    split: Split = SPLIT
    augmentation: Augmentation = PLAIN
    options: TrainingOptions = IN_FLOAT32
    frozen: str = "none"
    fixed: str = "all"
    smoothing: float = 0.1
    drop_path: float = 0.0
    tolerance: float = 1e-5

    @property
    def phase(self) -> PicturePhase:
        rates = group_rates(1e-3, 3) if self.frozen == "none" else {"head": 1e-3}
        told: dict[str, Any] = {"label_smoothing": self.smoothing, "fixed_statistics": self.fixed, "warm_up": 0.3}
        how = self.frozen, rates, 0.01, self.options, "cpu", [1, 1], told, self.drop_path
        return PicturePhase(self.split, self.augmentation, self.batch_size, 0, *how)  # type: ignore[arg-type]


SETTINGS = {
    "odd batches": Setting(),
    "fewer pictures than processes": Setting(batch_size=2, split=replace(SPLIT, train=np.arange(4))),
    "a body by batch statistics": Setting(fixed="none", batch_size=8),
    "BatchNorm with activations": Setting("test_efficientnet", fixed="none", batch_size=8),
    "weights of pictures": Setting(split=replace(SPLIT, weights=WEIGHTS)),
    "a balanced sampler": Setting(split=replace(SPLIT, is_balanced=True)),
    "mixup": Setting(augmentation=replace(PLAIN, mixup=0.4)),
    "cutmix in parts": Setting(augmentation=replace(PLAIN, cutmix=1.0), options=in_float32(accumulate=3)),
    "all that varies pictures": Setting(
        augmentation=replace(PLAIN, perspective=0.2, erase=0.5, trivial=True, mixup=0.2, cutmix=0.5)
    ),
    "parts of a weighted batch": Setting(
        split=replace(SPLIT, weights=WEIGHTS), options=in_float32(accumulate=2, clip_norm=0.5)
    ),
    "blocks that are skipped": Setting(drop_path=0.3),
    "a head alone": Setting(frozen="body", fixed="body"),
    "an average of the weights": Setting(options=in_float32(keep="moving_average", average_decay=0.5)),
    "in bfloat16": Setting("test_efficientnet", options=TrainingOptions(precision="bfloat16"), tolerance=1e-3),
    "SGD": Setting(options=in_float32(optimizer="sgd", momentum="cycled", keep="mean_of_cycles")),
}


# Those that the range test is also tried with, and those that three processes train by.
FOUND = ("odd batches", "a body by batch statistics")
BY_THREE = ("odd batches", "fewer pictures than processes", "cutmix in parts")


def train_all(folder: Path, names: list[str]) -> None:
    """Losses of steps, records of epochs, weights and a finder's curve of each setting."""
    for name in names:
        setting = SETTINGS[name]
        checkpoint = Checkpoint(setting.backbone, ["a", "b", "c"], 8, 0.5, 32, "crop", grey=False)
        torch.manual_seed(0)
        network = build_network(checkpoint, setting.drop_path)
        if name in FOUND:
            curve = find_together(network, setting.phase.build(network, checkpoint, PIXELS), FIND)
            np.save(folder / f"{name}.npy", curve.losses)
        records: list[EpochRecord] = []
        training = Training(network, Backups(folder / f"backups {name}", "run"), records.append)
        trained = train_in_phases(training, [lambda s=setting, n=network, c=checkpoint: s.phase.build(n, c, PIXELS)])
        found = {
            "steps": [step.loss for record in records for step in record.steps],
            "valid": [(record.valid_loss, record.valid_accuracy, record.valid_macro_f1) for record in records],
            "counts": [(record.epoch, record.step) for record in records],
            "kept": trained.validated.loss,
        }
        (folder / f"{name}.json").write_text(json.dumps(found))
        torch.save(network.state_dict(), folder / f"{name}.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one process")
    torch.set_num_threads(1)
    train_all(folder, list(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes that train by all settings, and of three by some."""
    folder = tmp_path_factory.mktemp("several processes")
    run_led(train_all, folder, list(SETTINGS), processes=2, cache=folder / "cache")
    (folder / "three").mkdir()
    run_led(train_all, folder / "three", list(BY_THREE), processes=3, cache=folder / "cache")
    return folder


@pytest.mark.parametrize(("by", "name"), [*((".", name) for name in SETTINGS), *(("three", name) for name in BY_THREE)])
def test_several_processes_train_as_one(alone: Path, shared: Path, by: str, name: str) -> None:
    shared = shared / by
    expected, found = (json.loads((folder / f"{name}.json").read_text()) for folder in (alone, shared))
    assert found["counts"] == expected["counts"]
    tolerance = SETTINGS[name].tolerance
    for what in ("steps", "valid", "kept"):
        np.testing.assert_allclose(found[what], expected[what], atol=tolerance, rtol=tolerance, err_msg=what)
    weights, others = (torch.load(folder / f"{name}.pt") for folder in (alone, shared))
    for key, tensor in weights.items():
        torch.testing.assert_close(
            others[key], tensor, atol=10 * tolerance, rtol=100 * tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("name", FOUND)
def test_several_processes_find_the_curve_of_one(alone: Path, shared: Path, name: str) -> None:
    expected, found = (np.load(folder / f"{name}.npy") for folder in (alone, shared))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def count_pictures(folder: Path) -> None:
    """How many pictures of a batch of two processes' go through the network in this one."""
    setting = Setting(batch_size=8, options=TrainingOptions(accumulate=2))
    checkpoint = Checkpoint(setting.backbone, ["a", "b", "c"], 8, 0.5, 32, "crop", grey=False)
    network = build_network(checkpoint)
    counts: list[Any] = []  # with what stands for a number where its course is traced
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[0]))
    training = Training(network, Backups(folder / f"backups {processes()}", "run"), lambda record: None)
    train_in_phases(training, [lambda: setting.phase.build(network, checkpoint, PIXELS)])
    (folder / str(processes())).write_text(str(sum(one for one in counts if isinstance(one, int))))


def test_each_of_two_processes_computes_half_of_the_pictures(tmp_path: Path) -> None:
    count_pictures(tmp_path)
    run_led(count_pictures, tmp_path, cache=tmp_path / "cache")
    alone, shared = (int((tmp_path / name).read_text()) for name in ("1", "2"))
    assert alone == 2 * (16 + 7)
    assert shared == 2 * (8 + 4)
