"""Backups of a training in progress, so that a killed run loses only what came after the last one.

A backup holds weights, those to be kept, optimizer, random state and progress as safetensors and JSON, and is published
whole. The order of the pictures and their augmentation follow from the seed and the epoch, so they are part of the
progress.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.cache.location import make_folder
from pipeline.cache.store import is_whole, publish, write_whole
from pipeline.system.console import say
from pipeline.system.errors import UserError
from pipeline.training.average import MovingAverage
from pipeline.training.fit import TrainingProgress
from pipeline.training.keep import Snapshot
from pipeline.training.records import EpochRecord, StepRecord

TENSORS = "state.safetensors"
FACTS = "progress.json"
EPOCHS, CYCLE_ENDS = "epochs", "cycle_ends"
KEPT = 2  # the newest, and the one before it in case the newest is damaged
SECONDS_BETWEEN_BACKUPS = 60.0
LARGEST_SHARE = 0.01


@dataclass(frozen=True)
class Backup:
    """A saved training: the number of the `phase`, the `progress` in it, the records of all epochs completed before,
    the weights to be kept as `snapshot`, and the state of network and optimizer. `run_id` is the run that saved it."""

    run_id: str
    phase: int
    progress: TrainingProgress
    records: list[EpochRecord]
    snapshot: Snapshot
    tensors: dict[str, Tensor]

    @property
    def average(self) -> dict[str, Tensor]:
        """The moving average of the weights."""
        return _below("average", self.tensors)

    def restore(self, network: nn.Module, optimizer: Optimizer) -> None:
        """Restore both, on the devices and in the memory formats that they have now."""
        restore(network, optimizer, self.tensors)


@dataclass(frozen=True)
class TrainingState:
    """All that training changes: the `network`, the `optimizer`, the weights to be kept as `snapshot`, and their
    moving `average`, if there is one."""

    network: nn.Module
    optimizer: Optimizer
    snapshot: Snapshot = field(default_factory=Snapshot)
    average: MovingAverage | None = None


def tensors_of(network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The state of both, by name."""
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in optimizer.state[parameter].items()}
    return tensors


def restore(network: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give both the state that `tensors_of` gave, on the devices and in the memory formats that they have now."""
    network.load_state_dict(_below("network", tensors))
    state = _below("optimizer", tensors)
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, tensor in _below(str(index), state).items():
            # In the memory layout of the parameter: fused kernels walk both linearly.
            is_alike = tensor.shape == parameter.shape
            target = torch.empty_like(parameter if is_alike else tensor, device=parameter.device)
            optimizer.state[parameter][key] = target.copy_(tensor)


class Backups:
    """The backups of a stage's training in `folder`, made by the run `run_id`."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._number = max((int(backup.name) for backup in _published(folder)), default=0)
        self._saved_at = time.monotonic()
        self._cost_seconds = 0.0

    def are_due(self) -> bool:
        """Whether a minute has passed since the last one, and writing takes at most 1 % of the time."""
        return self._may_write(SECONDS_BETWEEN_BACKUPS)

    def save(self, state: TrainingState, phase: int, progress: TrainingProgress, epochs: int) -> None:
        """Publish a backup; `epochs` is the number of records saved before."""
        began = time.monotonic()
        _check_finite(state.network)
        self._number += 1
        facts = {
            "run_id": self._run_id,
            "phase": phase,
            "progress": asdict(replace(progress, random_state={})),
            "epochs": epochs,
            "kept_epochs": state.snapshot.epochs,
        }

        def write(folder: Path) -> None:
            save_file(_tensors(state, progress), folder / TENSORS)
            (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")

        publish(self._folder / f"{self._number:08d}", {"run_id": self._run_id}, write)
        for outdated in _published(self._folder)[:-KEPT]:
            shutil.rmtree(outdated, ignore_errors=True)
        self._saved_at = time.monotonic()
        self._cost_seconds = self._saved_at - began

    def save_after_epoch(
        self,
        state: TrainingState,
        phase: int,
        progress: TrainingProgress,
        records: list[EpochRecord],
        surely: bool,
    ) -> None:
        """Save the last of `records`, and a backup too if writing takes at most 1 % of the time, or `surely`."""
        folder = self._folder / EPOCHS
        make_folder(folder)
        text = json.dumps(asdict(records[-1]))
        write_whole(folder / f"{len(records):08d}.json", text.encode())
        if surely or self._may_write(0.0):
            self.save(state, phase, progress, len(records))

    def save_cycle_end(self, network: nn.Module, epoch: int) -> None:
        """Publish the weights that a cycle ends with, after this epoch."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}

        def write(folder: Path) -> None:
            save_file(state, folder / TENSORS)

        publish(self._folder / CYCLE_ENDS / f"{epoch:08d}", {"run_id": self._run_id}, write)

    def cycle_ends(self, records: Sequence[EpochRecord]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(The epoch, the weights after it) of each of `records` with which a cycle ended whose weights were saved."""
        for record in records:
            folder = self._folder / CYCLE_ENDS / f"{record.epoch:08d}"
            if folder.is_dir() and is_whole(folder, contents=True):
                yield record.epoch, load_file(folder / TENSORS)

    @cached_property
    def earlier(self) -> Backup | None:
        """The latest undamaged backup that an earlier run left, or None; damaged ones are reported."""
        for folder in reversed(_published(self._folder)):
            try:
                if is_whole(folder, contents=True):
                    return _read(folder, self._folder / EPOCHS)
            except (OSError, ValueError, KeyError, TypeError):
                pass
            say(f"  the backup {folder} is damaged and is ignored")
        return None

    def _may_write(self, seconds_between: float) -> bool:
        return time.monotonic() - self._saved_at >= max(seconds_between, self._cost_seconds / LARGEST_SHARE)


def _read(folder: Path, epochs: Path) -> Backup:
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    tensors = load_file(folder / TENSORS)
    progress = TrainingProgress(**(facts["progress"] | {"random_state": _below("random", tensors)}))
    records = [_record(epochs / f"{number:08d}.json") for number in range(1, facts["epochs"] + 1)]
    snapshot = Snapshot(facts["kept_epochs"], _below("kept", tensors))
    return Backup(facts["run_id"], facts["phase"], progress, records, snapshot, tensors)


def _record(path: Path) -> EpochRecord:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return EpochRecord(**(facts | {"steps": [StepRecord(**step) for step in facts["steps"]]}))


def _tensors(state: TrainingState, progress: TrainingProgress) -> dict[str, Tensor]:
    tensors = tensors_of(state.network, state.optimizer)
    if state.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in state.average.state.items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in state.snapshot.state.items()}
    tensors |= {f"random.{device}": tensor for device, tensor in progress.random_state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _published(folder: Path) -> list[Path]:
    """The backups in `folder`, oldest first."""
    return sorted(folder.glob("[0-9]" * 8)) if folder.is_dir() else []


def _check_finite(network: nn.Module) -> None:
    """A step can ruin the weights before the next loss shows it; such a state must not replace a good one."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise UserError("The weights are no longer finite numbers; lower the stage's lr.")
