"""Chains of runs: stages of a recipe, each on the run of another, in this process and watched."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.data.augment import Augmentation
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.layer_groups import layer_groups
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from stages import evaluate, fine_tune, lr_find, precompute, resize, train_head
from tests.stages.watching import Notes, watched
from tests.workplace import Workplace

# The command of each run of a chain, by the run's name.
COMMANDS = {
    "precompute": precompute.run,
    "lr_find": lr_find.run,
    "train_head": train_head.run,
    "lr_find_unfrozen": lr_find.run,
    "fine_tune": fine_tune.run,
    "resize": resize.run,
    "evaluate": evaluate.run,
}
# What the recipe of `recipe_on` asks for, whose strength is 0.5.
AUGMENTED = Augmentation("all", 10.0, 1.15, 0.9, 0.15, 0.6)


@dataclass(frozen=True)
class StageRun:
    """A finished `run` of a stage, what it `did`, and the run `before` it."""

    run: mlflow.entities.Run
    did: Notes
    before: "StageRun | None"

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def files(self) -> Path:
        return Path(self.run.info.artifact_uri)

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.run.data.metrics)

    def network(self) -> dict[str, Tensor]:
        """The state of the network that it left; of a stage that trains none, of the one before it."""
        path = self.files / "checkpoint" / "network.safetensors"
        if path.exists():
            return load_file(path)
        assert self.before is not None
        return self.before.network()

    def moved(self) -> set[str]:
        """The names of the tensors that are not what they were before the stage."""
        assert self.before is not None
        before = self.before.network()
        return {name for name, tensor in self.network().items() if not torch.equal(tensor, before[name])}

    def layer_groups(self) -> dict[str, list[str]]:
        """The names of its network's parameters by layer group."""
        return layer_groups(load_checkpoint(self.files / "checkpoint")[0])

    def moved_groups(self) -> set[str]:
        """The layer groups of which a parameter has moved."""
        moved = self.moved()
        return {group for group, names in self.layer_groups().items() if moved & set(names)}

    def moved_statistics(self) -> set[str]:
        """The layer groups of which running statistics of BatchNorm have moved."""
        groups = {_part(name): group for group, names in self.layer_groups().items() for name in names}
        return {groups[_part(name)] for name in self.moved() if "running" in name}


def _part(name: str) -> str:
    """The part of a network that a parameter or a buffer is of."""
    return name.rpartition(".")[0]


@dataclass(frozen=True)
class Chain:
    """The `runs` of a recipe in a workplace, by the names of COMMANDS."""

    workplace: Workplace
    recipe: Recipe
    runs: dict[str, StageRun]

    def __getitem__(self, name: str) -> StageRun:
        return self.runs[name]

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self["precompute"].files / "manifest")

    def rows(self, split: str) -> set[int]:
        """Those of the manifest that are of a split."""
        return set(self.manifest.rows(split).tolist())

    def other_recipe(self, **changes: Any) -> Recipe:
        """The chain's recipe, with other values of some keys (a__b for a.b)."""
        return recipe_on(Path(self.recipe.data.source), **changes)


def run_stage_on(name: str, recipe: Recipe, before: StageRun | None = None) -> StageRun:
    """A stage on the run `before` it, in the workplace that was entered."""
    with watched() as did:
        done = COMMANDS[name](recipe, before and before.id)
    return StageRun(mlflow.get_run(done.run_id), did, before)


def run_chain(workplace: Workplace, recipe: Recipe, follows: Mapping[str, str]) -> Chain:
    """Runs stages of a recipe one after the other; `follows` names them, each with the one whose run it follows."""
    chain = Chain(workplace, recipe, {})
    with workplace.entered():
        for name, before in follows.items():
            chain.runs[name] = run_stage_on(name, recipe, chain.runs.get(before))
    return chain


def recipe_on(data: Path, **changes: Any) -> Recipe:
    """A recipe for pictures that were drawn, whose values differ from the defaults and from each other, with the keys
    of `changes` (a__b for a.b) set to others."""
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
        "lr_find": {"iterations": 30, "start_lr": 1e-5, "end_lr": 2.0, "suggestion": "steep",
                    "suggestion_unfrozen": "minimum"},
        "training": {"optimizer": "sgd", "momentum": "cycled",
                     "precision": "float32", "clip_norm": 50.0, "accumulate": 2,
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
                     "duplicate_similarity": 0.5, "cross_validation_folds": 3, "neighbours": 7, "onnx": False,
                     "champion_by": "macro_f1", "register_as": "wired"},
    }  # fmt: skip
    for key, value in changes.items():
        *sections, last = key.split("__")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return build_recipe(content, {}, "a test")
