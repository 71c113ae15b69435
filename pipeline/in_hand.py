"""A stage's training in hand, kept on disk while it lasts, so that a killed run costs no more than what came after.

A checkpoint holds weights, optimizer, random state and position as safetensors and JSON, and is published whole. The
order of the pictures and their augmentation follow from the seed and the epoch, so a position says them too.
"""

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.console import say
from pipeline.errors import UserError
from pipeline.fit import EpochRecord, Position, StepRecord
from pipeline.store import is_whole, publish, write_whole

TENSORS = "state.safetensors"
FACTS = "position.json"
EPOCHS = "epochs"
KEPT = 2  # the newest, and the one before it, should the newest be damaged
SECONDS_BETWEEN = 60.0
LARGEST_SHARE = 0.01


@dataclass(frozen=True)
class InHand:
    """Training as it was kept: the number of the `phase`, the `position` in it, the records of all epochs done
    before, and the state of network and optimizer. `run_id` is the run that kept it."""

    run_id: str
    phase: int
    position: Position
    records: list[EpochRecord]
    tensors: dict[str, Tensor]

    def restore(self, network: nn.Module, optimizer: Optimizer) -> None:
        """Put both back to where they were, on the devices and in the memory formats that they have now."""
        network.load_state_dict(_below("network", self.tensors))
        kept = _below("optimizer", self.tensors)
        for index, parameter in enumerate(_parameters(optimizer)):
            for key, tensor in _below(str(index), kept).items():
                # As laid out as the parameter is: fused kernels take both as one run of memory.
                target = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
                optimizer.state[parameter][key] = target.copy_(tensor)


class Checkpoints:
    """Keeps a stage's training in `folder`, for the run `run_id`."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._number = max((int(place.name) for place in _published(folder)), default=0)
        self._kept_at = time.monotonic()
        self._cost_seconds = 0.0

    def are_due(self) -> bool:
        """Whether a minute has passed since the last one, and writing takes no more than 1 % of the time."""
        return self._may_write(SECONDS_BETWEEN)

    def keep(self, network: nn.Module, optimizer: Optimizer, phase: int, position: Position, epochs: int) -> None:
        """Publish one; `epochs` is the number of records kept before."""
        began = time.monotonic()
        _check_finite(network)
        self._number += 1
        facts = {
            "run_id": self._run_id,
            "phase": phase,
            "position": asdict(replace(position, random_state={})),
            "epochs": epochs,
        }

        def write(folder: Path) -> None:
            save_file(_state(network, optimizer, position), folder / TENSORS)
            (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")

        publish(self._folder / f"{self._number:08d}", {"run_id": self._run_id}, write)
        for place in _published(self._folder)[:-KEPT]:
            shutil.rmtree(place, ignore_errors=True)
        self._kept_at = time.monotonic()
        self._cost_seconds = self._kept_at - began

    def keep_after_epoch(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        phase: int,
        position: Position,
        records: list[EpochRecord],
        surely: bool,
    ) -> None:
        """Note the last of `records`, and publish a checkpoint; unless `surely`, not where epochs are so short that it
        would cost more than 1 % of the time."""
        folder = self._folder / EPOCHS
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(records[-1]))
        write_whole(folder / f"{len(records):08d}.json", text.encode())
        if surely or self._may_write(0.0):
            self.keep(network, optimizer, phase, position, len(records))

    def newest(self) -> InHand | None:
        """The latest that is undamaged, or None; damaged ones are said."""
        for place in reversed(_published(self._folder)):
            try:
                if is_whole(place, contents=True):
                    return _read(place, self._folder / EPOCHS)
            except (OSError, ValueError, KeyError, TypeError):
                pass
            say(f"  the checkpoint {place} is damaged and is left out")
        return None

    def _may_write(self, seconds_between: float) -> bool:
        return time.monotonic() - self._kept_at >= max(seconds_between, self._cost_seconds / LARGEST_SHARE)


def _read(place: Path, epochs: Path) -> InHand:
    facts = json.loads((place / FACTS).read_text(encoding="utf-8"))
    tensors = load_file(place / TENSORS)
    position = Position(**(facts["position"] | {"random_state": _below("random", tensors)}))
    records = [_record(epochs / f"{number:08d}.json") for number in range(1, facts["epochs"] + 1)]
    return InHand(facts["run_id"], facts["phase"], position, records, tensors)


def _record(path: Path) -> EpochRecord:
    facts = json.loads(path.read_text(encoding="utf-8"))
    return EpochRecord(**(facts | {"steps": [StepRecord(**step) for step in facts["steps"]]}))


def _state(network: nn.Module, optimizer: Optimizer, position: Position) -> dict[str, Tensor]:
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        state |= {f"optimizer.{index}.{key}": tensor for key, tensor in optimizer.state[parameter].items()}
    state |= {f"random.{device}": tensor for device, tensor in position.random_state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _published(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("[0-9]" * 8)) if folder.is_dir() else []


def _check_finite(network: nn.Module) -> None:
    """A step can spoil the weights before the next loss shows it; such a state must not take a good one's place."""
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise UserError("The weights are no longer finite numbers; lower the stage's lr.")
