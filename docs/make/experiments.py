"""Stages run for the figures of docs/method.md, each on small pictures, so that all of them take some minutes."""

import os
from collections.abc import Mapping
from contextlib import chdir
from functools import cached_property
from pathlib import Path

import mlflow
import pandas as pd
import torch

from docs.make.project import Copy
from pipeline import tracking
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.layer_groups import layer_groups
from pipeline.recipe.recipe_file import override_recipe, read_recipe
from pipeline.recipe.schema import Recipe
from pipeline.system.tables import read_table
from pipeline.tracking import RunRef
from stages import evaluate, fine_tune, lr_find, precompute, sweep_head, train_head

SIZES_PX = (64, 128, 224, 320)
RATIOS = (1, 3, 10)
SEEDS = (0, 1, 2)
BASE = {
    "precompute.image_px": "128", "data.split_seed": "0", "evaluate.onnx": "false", "evaluate.register_as": "",
}  # fmt: skip
ONE_HEAD = {f"sweep_head.{key}": f"{{type: choice, of: [{value}]}}" for key, value in (
    ("weight_decay", 0.01), ("dropout", 0.5), ("label_smoothing", 0.1), ("stored_epochs", 5),
)}  # fmt: skip
MANY_RATES = ONE_HEAD | {
    "sweep_head.lr": "{type: log_uniform, low: 1e-5, high: 3}", "sweep_head.settings": "40", "sweep_head.seeds": "3",
    "sweep_head.finder_seeds": "2",
}  # fmt: skip
HEAD_ALONE = {"train_head.lr": "1e-3"}
LONG = HEAD_ALONE | {"train_head.stored_epochs": "40"}
FEW = LONG | {"train_head.fraction": "0.1", "head.dropout": "0"}
RESTARTS = {"fine_tune.lr": "1e-3", "fine_tune.cycles": "3", "fine_tune.cycle_len": "1", "fine_tune.cycle_mult": "2",
            "fine_tune.warm_up": "0"}  # fmt: skip
LIVE = HEAD_ALONE | {"train_head.stored_epochs": "0", "train_head.cycles": "1"}


class Experiments:
    """Runs in the tracking database of a copy of the project; each is made once, when it is asked for."""

    def __init__(self, copy: Copy) -> None:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "THAW_"))]:
            del os.environ[name]
        os.environ |= {"THAW_CACHE": copy.environment["THAW_CACHE"], "MLFLOW_EXPERIMENT_NAME": "method"}
        self._folder = copy.folder
        mlflow.set_tracking_uri(f"sqlite:///{copy.folder / 'mlflow.db'}")
        self.recipe = read_recipe(copy.folder / "recipes" / "photos.yaml", BASE | {"data": str(copy.folder / "photos")})

    def _run(self, stage: object, upstream: RunRef | None = None, settings: Mapping[str, str] | None = None) -> RunRef:
        with chdir(self._folder):
            recipe: Recipe = override_recipe(self.recipe, settings or {})
            return stage.run(recipe, upstream.run_id if upstream else None)

    @cached_property
    def start(self) -> RunRef:
        """precompute at 128 px."""
        return self._run(precompute)

    @cached_property
    def finder(self) -> RunRef:
        """The range test of the head."""
        return self._run(lr_find, self.start)

    @cached_property
    def rates(self) -> pd.DataFrame:
        """Heads at 40 rates, three seeds each, a row per rate, lowest first: `lr`, `valid_loss_mean`,
        `valid_loss_std`, `valid_accuracy_mean`."""
        compared = self._run(sweep_head, self.start, MANY_RATES)
        return read_table(self.file(compared, "settings.csv")).sort_values("lr", ignore_index=True)

    @cached_property
    def head(self) -> RunRef:
        """A head by the finder's rate."""
        return self._run(train_head, self.finder)

    @cached_property
    def live(self) -> RunRef:
        """An epoch of the head with augmentation on, the body frozen."""
        return self._run(train_head, self.start, LIVE)

    @cached_property
    def restarts(self) -> RunRef:
        """All layers in cosine cycles of 1, 2 and 4 epochs."""
        return self._run(fine_tune, self.head, RESTARTS)

    @cached_property
    def overfitting(self) -> dict[str, RunRef]:
        """Heads trained for 40 epochs: on all pictures, and on a tenth of them without dropout."""
        return {
            "all pictures, dropout 0.5": self._run(train_head, self.start, LONG),
            "a tenth of them, no dropout": self._run(train_head, self.start, FEW),
        }

    @cached_property
    def ratios(self) -> dict[int, RunRef]:
        """All layers for two epochs, by the ratio of the layer groups' rates."""
        given = {"fine_tune.lr": "1e-3", "fine_tune.cycle_len": "2"}
        return {ratio: self._run(fine_tune, self.head, given | {"fine_tune.lr_ratio": str(ratio)}) for ratio in RATIOS}

    @cached_property
    def sizes(self) -> dict[int, tuple[RunRef, list[RunRef]]]:
        """By image size the run of precompute, and heads on it by three seeds."""
        found = {}
        for size in SIZES_PX:
            start = self._run(precompute, None, {"precompute.image_px": str(size)})
            found[size] = start, [self._run(train_head, start, HEAD_ALONE | {"seed": str(seed)}) for seed in SEEDS]
        return found

    @cached_property
    def evaluated(self) -> RunRef:
        """The evaluation of the network after the restarts, with test-time augmentation."""
        return self._run(evaluate, self.restarts)

    def file(self, ref: RunRef, name: str) -> Path:
        """A file or folder of a run."""
        with chdir(self._folder):
            return tracking.artifact(ref.run_id, name)

    def movement(self, before: RunRef, after: RunRef) -> dict[str, float]:
        """By layer group how far its weights went, as a share of their norm."""
        old, new = (load_checkpoint(self.file(ref, "checkpoint"))[0] for ref in (before, after))
        was, now = old.state_dict(), new.state_dict()
        moved = {}
        for group, names in layer_groups(old).items():
            flat = torch.cat([was[name].flatten() for name in names])
            moved[group] = float((torch.cat([now[name].flatten() for name in names]) - flat).norm() / flat.norm())
        return moved
