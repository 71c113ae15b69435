"""What stages really do, noted from within: every batch that they read and every step that they take."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from timm.layers import DropPath
from torch import Tensor, nn

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches
from pipeline.evaluation import evaluation
from pipeline.evaluation.ensembles import members
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.training import step as steps

ONE_PIXEL = io.BytesIO()
Image.new("L", (1, 1)).save(ONE_PIXEL, "PNG")


@dataclass(frozen=True)
class Read:
    """An epoch of batches: its `rows`, of the manifest or of stored activations, how they were varied, the seed of
    their order (None where they were not shuffled), and the size of a batch."""

    rows: tuple[int, ...]
    augmentation: Augmentation | None
    seed: int | None
    batch_size: int


@dataclass(frozen=True)
class Step:
    """An optimizer step on inputs of this `shape`: activations in two dimensions, feature maps or pictures in four.

    `rates` and `decays` (of the matrices) are by layer group; `optimizer` is its name, and whether its momentum is
    cycled; `targets` are class numbers or shares of the classes; `dropouts` are the shares that were dropped, layer by
    layer, and `drop_paths` the rates at which blocks were skipped."""

    shape: tuple[int, ...]
    targets: Tensor
    weights: list[float] | None
    rates: dict[str, float]
    decays: dict[str, float]
    optimizer: tuple[str, bool]
    label_smoothing: float
    options: TrainingOptions | None
    dropouts: tuple[float, ...]
    drop_paths: tuple[float, ...]
    body_learns_statistics: bool

    @classmethod
    def of(
        cls, module: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor, label_smoothing: float = 0.0,
        weights: Tensor | None = None, options: TrainingOptions | None = None,
    ) -> "Step":  # fmt: skip
        """The step that `train_step` is about to take with these arguments."""
        groups = optimizer.param_groups
        names = {group["layer_group"] for group in groups}
        parts = list(module.modules())
        return cls(
            shape=tuple(inputs.shape),
            targets=targets,
            weights=None if weights is None else weights.tolist(),
            rates={group["layer_group"]: group["lr"] for group in groups},
            decays={
                name: max(group["weight_decay"] for group in groups if group["layer_group"] == name) for name in names
            },
            optimizer=(type(optimizer).__name__, all(group["is_cycled"] for group in groups)),
            label_smoothing=label_smoothing,
            options=options,
            dropouts=tuple(part.p for part in parts if isinstance(part, nn.Dropout) and part.training),
            drop_paths=tuple(part.drop_prob for part in parts if isinstance(part, DropPath)),
            body_learns_statistics=any(part.training for part in parts if isinstance(part, nn.BatchNorm2d)),
        )


@dataclass(frozen=True)
class Prediction:
    """A pass of evaluate over `rows` of the manifest; `views` are the matrices of test-time augmentation, if any."""

    rows: tuple[int, ...]
    batch_size: int
    views: Tensor | None


@dataclass
class Notes:
    """What was done: `reads` and `steps` in their order, and `first_state`, which is what was trained, before its first
    step; the networks that were `compiled`; the `predictions` of evaluate, and the arguments with which over-fitting
    was `diagnosed`."""

    reads: list[Read] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    first_state: dict[str, Tensor] = field(default_factory=dict)
    compiled: list[nn.Module] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    diagnosed: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def training(self) -> list[Read]:
        """The epochs that were trained on, which alone come shuffled."""
        return [read for read in self.reads if read.seed is not None]

    @property
    def validation(self) -> list[Read]:
        return [read for read in self.reads if read.seed is None]

    def rates(self, group: str = "head") -> list[float]:
        """Of a layer group, step by step."""
        return [step.rates[group] for step in self.steps]


@contextmanager
def undrawn() -> Iterator[None]:
    """Within the block no figure is rendered, which takes long: its file is a picture of one pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_one_pixel)
        yield


@contextmanager
def watched() -> Iterator[Notes]:
    """Notes what the stages of this process do within the block; no figure is rendered."""
    notes = Notes()
    weighted_epoch, train_step, diagnose = Batches.weighted_epoch, steps.train_step, evaluation.diagnose_overfitting

    def note_epoch(self: Batches, number: int, first: int = 0) -> Iterator[Any]:
        notes.reads.append(Read(tuple(self.rows.tolist()), self.augmentation, self.seed, self.batch_size))
        return weighted_epoch(self, number, first)

    def note_step(module: nn.Module, *arguments: Any) -> Any:
        if not notes.steps:
            notes.first_state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        notes.steps.append(Step.of(module, *arguments))
        return train_step(module, *arguments)

    def note_compiling(network: nn.Module) -> nn.Module:
        notes.compiled.append(network)
        return network

    def noting(predict: Callable[..., Any]) -> Callable[..., Any]:
        def note_prediction(network: Any, pixels: Any, rows: Any, batch_size: int, *more: Any, **named: Any) -> Any:
            views = next((one for one in (*more, *named.values()) if isinstance(one, Tensor)), None)
            notes.predictions.append(Prediction(tuple(rows.tolist()), batch_size, views))
            return predict(network, pixels, rows, batch_size, *more, **named)

        return note_prediction

    def note_diagnosis(*arguments: float) -> Any:
        notes.diagnosed.append(arguments)
        return diagnose(*arguments)

    with pytest.MonkeyPatch.context() as patch, undrawn():
        patch.setattr(Batches, "weighted_epoch", note_epoch)
        patch.setattr(steps, "train_step", note_step)
        patch.setattr(steps, "CompiledNetwork", note_compiling)
        patch.setattr(evaluation, "diagnose_overfitting", note_diagnosis)
        for name in ("predict", "predict_with_activations"):
            patch.setattr(members, name, noting(getattr(members, name)))
        yield notes


def save_one_pixel(figure: Figure, target: Any, **settings: Any) -> None:
    """Stands for `Figure.savefig`."""
    if isinstance(target, str | Path):
        Path(target).write_bytes(ONE_PIXEL.getvalue())
    else:
        target.write(ONE_PIXEL.getvalue())
