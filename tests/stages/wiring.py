"""What the stages really do, seen from within: every batch that they read and every step that they take."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file
from timm.layers import DropPath
from torch import Tensor, nn

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches
from pipeline.evaluation import evaluation
from pipeline.evaluation.ensembles import members
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.tracking import RunRef
from pipeline.training import step as steps

ONE_PIXEL = io.BytesIO()
Image.new("L", (1, 1)).save(ONE_PIXEL, "PNG")
CLASSES = ("circle", "cross", "dot")
PICTURES_PER_CLASS = 24


@dataclass(frozen=True)
class Step:
    """An optimizer step: by layer group its rate and the decay of its matrices, whether BatchNorm in the body learned
    new statistics, the smoothing of labels, the weights of pictures, the shape of what was trained on, the shares that
    were dropped, layer by layer, the options, the rates at which blocks were skipped, and the optimizer with whether
    its momentum is cycled; `targets` are class numbers or shares of the classes."""

    rates: dict[str, float]
    decays: dict[str, float]
    body_learns_statistics: bool
    label_smoothing: float
    weights: list[float] | None
    shape: tuple[int, ...]
    dropouts: tuple[float, ...]
    options: TrainingOptions | None
    drop_paths: tuple[float, ...]
    optimizer: tuple[str, bool]
    targets: Tensor


@dataclass(frozen=True)
class Read:
    """An epoch of batches: its `rows`, of the manifest or of stored activations, how they were varied, the seed of
    their order (None where they were not shuffled), and the size of a batch."""

    rows: tuple[int, ...]
    augmentation: Augmentation | None
    seed: int | None
    batch_size: int


@dataclass
class Seen:
    """What a stage did, with the files and metrics of its run; `first_state` is what was trained, before the first
    step, and `before` the upstream network."""

    reads: list[Read] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    compiled: list[nn.Module] = field(default_factory=list)
    predicted: list[dict[str, Any]] = field(default_factory=list)
    diagnosed: list[tuple[float, float]] = field(default_factory=list)
    advised_from: list[tuple[float, ...]] = field(default_factory=list)
    first_state: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, Tensor] = field(default_factory=dict)
    run: mlflow.entities.Run | None = None

    @property
    def files(self) -> Path:
        assert self.run is not None
        return Path(self.run.info.artifact_uri)

    @property
    def metrics(self) -> dict[str, float]:
        assert self.run is not None
        return dict(self.run.data.metrics)

    @property
    def training(self) -> list[Read]:
        """The epochs that were trained on, which alone come shuffled."""
        return [read for read in self.reads if read.seed is not None]

    @property
    def validation(self) -> list[Read]:
        return [read for read in self.reads if read.seed is None]

    def network(self) -> dict[str, Tensor]:
        return load_file(self.files / "checkpoint" / "network.safetensors")

    def moved(self) -> set[str]:
        """The names of the tensors that are not what they were before the stage."""
        return {name for name, tensor in self.network().items() if not torch.equal(tensor, self.before[name])}

    def rates(self, group: str = "head") -> list[float]:
        return [step.rates[group] for step in self.steps]


@contextmanager
def watched() -> Iterator[Seen]:
    """Notes what is read, trained and predicted within the block; no figure is rendered, which takes long."""
    seen = Seen()
    epoch, step = Batches.weighted_epoch, steps.train_step

    def note_epoch(self: Batches, number: int, first: int = 0) -> Iterator[Any]:
        seen.reads.append(Read(tuple(self.rows.tolist()), self.augmentation, self.seed, self.batch_size))
        return epoch(self, number, first)

    def note_step(
        module: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor, label_smoothing: float = 0.0,
        weights: Tensor | None = None, options: TrainingOptions | None = None,
    ) -> Any:  # fmt: skip
        if not seen.steps:
            seen.first_state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        groups = optimizer.param_groups
        decays = {
            name: max(one["weight_decay"] for one in groups if one["layer_group"] == name)
            for name in {one["layer_group"] for one in groups}
        }
        of_body = [inner for inner in module.modules() if isinstance(inner, nn.BatchNorm2d)]
        seen.steps.append(
            Step(
                {one["layer_group"]: one["lr"] for one in groups},
                decays,
                any(inner.training for inner in of_body),
                label_smoothing,
                None if weights is None else weights.tolist(),
                tuple(inputs.shape),
                tuple(inner.p for inner in module.modules() if isinstance(inner, nn.Dropout) and inner.training),
                options,
                tuple(inner.drop_prob for inner in module.modules() if isinstance(inner, DropPath)),
                (type(optimizer).__name__, all(one["is_cycled"] for one in groups)),
                targets,
            )
        )
        return step(module, optimizer, inputs, targets, label_smoothing, weights, options)

    def note_predict(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(network: Any, pixels: Any, rows: Any, batch_size: int, *more: Any, **named: Any) -> Any:
            views = next((one for one in (*more, *named.values()) if isinstance(one, Tensor)), None)
            seen.predicted.append({"rows": tuple(rows.tolist()), "batch_size": batch_size, "views": views})
            return call(network, pixels, rows, batch_size, *more, **named)

        return noted

    def note_compiling(network: nn.Module) -> nn.Module:
        seen.compiled.append(network)
        return network

    diagnose = evaluation.diagnose_overfitting

    def note_diagnosis(train_loss: float, valid_loss: float, *more: Any) -> Any:
        seen.diagnosed.append((train_loss, valid_loss))
        seen.advised_from.append(more)
        return diagnose(train_loss, valid_loss, *more)

    def save_one_pixel(self: Figure, target: Any, **settings: Any) -> None:
        if isinstance(target, str | Path):
            Path(target).write_bytes(ONE_PIXEL.getvalue())
        else:
            target.write(ONE_PIXEL.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_one_pixel)
        patch.setattr(evaluation, "diagnose_overfitting", note_diagnosis)
        patch.setattr(Batches, "weighted_epoch", note_epoch)
        patch.setattr(steps, "train_step", note_step)
        patch.setattr(steps, "CompiledNetwork", note_compiling)
        for name in ("predict", "predict_with_activations"):
            patch.setattr(members, name, note_predict(getattr(members, name)))
        yield seen


def run_watched(run: Callable[..., RunRef], recipe: Recipe, upstream: Seen | None = None) -> Seen:
    """A stage on the run of another one, and what it did."""
    with watched() as seen:
        ref = run(recipe, upstream.run.info.run_id if upstream is not None and upstream.run is not None else None)
    seen.run = mlflow.get_run(ref.run_id)
    return seen


def draw_pictures(folder: Path, size_px: int = 48, weights: bool = False) -> Path:
    """Pictures of three classes, in colour; gives their table, with weights that differ if asked for."""
    lines = ["path,label,weight" if weights else "path,label"]
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True)
        for one in range(PICTURES_PER_CLASS):
            random = np.random.default_rng([number, one])
            pixels = np.full((size_px, size_px + 8, 3), [60 * number, 120, 220 - 60 * number], dtype=np.float64)
            pixels += random.normal(0, 30, pixels.shape)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / label / f"{one}.png")
            lines.append(f"{label}/{one}.png,{label}" + (f",{1 + one % 3}" if weights else ""))
    table = folder / "pictures.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def recipe_on(data: Path, **changes: Any) -> Recipe:
    """A recipe whose values differ from the defaults, with the keys of `changes` (a__b for a.b) set to others."""
    content: dict[str, Any] = {
        "seed": 3,
        "device": "cpu",
        "data": {"source": str(data), "valid_fraction": 0.2, "test_fraction": 0.3, "fit": "squish",
                 "range": [0, 4095]},
        "model": {"backbone": "test_resnet", "weights": "random"},
        "head": {"hidden": 24, "dropout": 0.3},
        "augment": {"flip": "all", "rotate_degrees": 20.0, "zoom": 1.3, "crop": 0.8, "lighting": 0.3, "strength": 0.5,
                    "probability": 0.6},
        "precompute": {"image_px": 32, "batch_size": 16, "dtype": "float32"},
        "lr_find": {"batch_size": 8, "iterations": 30, "start_lr": 1e-5, "end_lr": 2.0, "suggestion": "steep",
                    "suggestion_unfrozen": "minimum",
                    "lr_ratio": 4.0, "batchnorm": "batch", "weight_decay": 0.03},
        "training": {"optimizer": "sgd", "momentum": "cycled",
                     "clip_norm": 50.0, "accumulate": 2,
                     "keep": "mean_of_cycles", "average_decay": 0.9, "early_stop_epochs": 90, "max_minutes": 60.0},
        "train_head": {"fraction": 0.8, "batch_size": 6, "lr": 0.004, "lr_ratio": 5.0, "weight_decay": 0.04,
                       "label_smoothing": 0.12, "stored_epochs": 2, "cycles": 2, "cycle_len": 2, "cycle_mult": 2,
                       "warm_up": 0.2},
        "fine_tune": {"fraction": 0.3, "batch_size": 5, "lr": 0.002, "lr_ratio": 6.0, "weight_decay": 0.06,
                      "label_smoothing": 0.15, "cycles": 3, "cycle_len": 2, "cycle_mult": 3, "warm_up": 0.5},
        "resize": {"image_px": 40, "freeze": "early", "fraction": 0.9, "batch_size": 4, "lr_ratio": 2.0,
                   "weight_decay": 0.07, "label_smoothing": 0.2, "cycles": 2, "cycle_len": 1, "cycle_mult": 3,
                   "warm_up": 0.3},
        "evaluate": {"batch_size": 7, "tta_views": 3, "top_losses": 5, "positive_class": "cross",
                     "duplicate_similarity": 0.5, "neighbours": 7, "onnx": False, "champion_by": "macro_f1",
                     "register_as": "wired"},
    }  # fmt: skip
    for key, value in changes.items():
        *sections, last = key.split("__")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return build_recipe(content, {}, "a test")
