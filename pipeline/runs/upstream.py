"""What earlier runs give to a stage: the manifest, files, epochs, and suggested rates. What it computes with is opened
by work/materials.py, which loads torch."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from pipeline import tracking
from pipeline.data.corrections import decided_pictures
from pipeline.data.manifest import Manifest, load_manifest
from pipeline.recipe.schema import Recipe
from pipeline.runs.stage import Stage, step_name
from pipeline.system.errors import UserError
from pipeline.system.tables import read_table
from pipeline.tracking import RunRef

SUGGESTED = "suggestion/lr"
TOP_RATE = "top_rate_head"


@dataclass(frozen=True)
class Upstream:
    """The `recipe` of a stage, and the `chain` of finished runs that it builds on, nearest first."""

    recipe: Recipe
    chain: tuple[RunRef, ...] = ()

    @classmethod
    def of(cls, stage: Stage, recipe: Recipe, run_id: str | None) -> "Upstream":
        """With the run `run_id`, the one that it followed, and so on.

        UserError if there is no such run, or if it is of a stage that this one cannot follow.
        """
        wanted = " or ".join(stage.follows)
        if run_id is None:
            raise UserError(
                f"{stage.name} needs an upstream run; give the id of a run of {wanted}: -P upstream=<run id>."
            )
        chain = [tracking.run_of(run_id)]
        if chain[0].stage not in stage.follows:
            raise UserError(
                f"{stage.name} cannot follow run {run_id}, which is a run of {chain[0].stage}; "
                f"give the id of a run of {wanted}."
            )
        return cls(recipe, tuple(_followed(chain)))

    def nearest(self, *stages: str) -> RunRef:
        """The nearest run of one of `stages`; UserError if there is none."""
        for ref in self.chain:
            if ref.stage in stages:
                return ref
        raise UserError(f"None of the upstream runs is a run of {' or '.join(stages)}; start from one that is.")

    def folder(self, name: str, *stages: str) -> Path:
        """The artifact folder `name` of the nearest run of one of `stages`."""
        return tracking.artifact(self.nearest(*stages).run_id, name)

    @cached_property
    def manifest(self) -> Manifest:
        """The pictures, as precompute split them."""
        return load_manifest(self.folder("manifest", "precompute"))

    @cached_property
    def decided_manifest(self) -> Manifest:
        """The same, with all pictures as `corrected` whose labels a person has decided on by now, those too that the
        file of data.corrections has kept since precompute ran: what is kept makes no other manifest."""
        known = self.manifest
        source = self.recipe.data.corrections
        return replace(known, corrected=decided_pictures(known.corrected, known.table, known.classes, source))

    def rate(self, lr: float | Sequence[float] | str, key: str) -> float | Sequence[float]:
        """The rate, or rates, of the recipe; for "auto" what the upstream run of lr_find suggests.

        UserError if the upstream run is of another stage: an older suggestion was made for another network.
        """
        if not isinstance(lr, str):
            return lr
        if self.chain[0].stage != "lr_find":
            raise UserError(
                f"{key} is auto, but the upstream run {self.chain[0].run_id} is of {self.chain[0].stage}; run lr_find "
                f"on it and give that run's id, or set {key} to a rate."
            )
        return suggested(self.chain[0])

    def epochs(self, *stages: str) -> pd.DataFrame:
        """The epochs of all runs of `stages` as one table, oldest first: each with the `run_id`, the `stage` and the
        top `rate` of its run, the key that sets it, `rate_key`, and its `phase`: "stored" for those of train_head on
        stored activations, else empty. Steps of resize are the stages `resize`, `resize 2` and so on."""
        stored_epochs = self.recipe.train_head.stored_epochs
        parts = []
        done: Counter[str] = Counter()
        for ref in (ref for ref in reversed(self.chain) if ref.stage in stages):
            done[ref.stage] += 1
            name = step_name(ref.stage, done[ref.stage])
            is_listed = ref.stage == "resize" and isinstance(self.recipe.resize, list)
            key = f"resize.{done[ref.stage] - 1}.lr" if is_listed else f"{ref.stage}.lr"
            part = read_table(tracking.artifact(ref.run_id, "epochs.csv"))
            is_stored = [ref.stage == "train_head" and number < stored_epochs for number in range(len(part))]
            phase = ["stored" if one else "" for one in is_stored]
            rate = ref.metrics.get(TOP_RATE, math.nan)
            parts.append(part.assign(run_id=ref.run_id, stage=name, rate=rate, rate_key=key, phase=phase))
        return pd.concat(parts, ignore_index=True)


def chain_from(run_id: str) -> list[RunRef]:
    """The stage run `run_id`, the one that it followed, and so on."""
    return _followed([tracking.run_of(run_id)])


def suggested(lr_find: RunRef) -> float:
    """The rate that a run of lr_find suggests."""
    return lr_find.metrics[SUGGESTED]


def _followed(chain: list[RunRef]) -> list[RunRef]:
    while chain[-1].upstream is not None:
        try:
            chain.append(tracking.run_of(chain[-1].upstream))
        except UserError:
            raise UserError(
                f"The run {chain[-1].run_id} of {chain[-1].stage} cannot be built on, since the run "
                f"{chain[-1].upstream} that it follows is gone; run main again, which does anew what is missing."
            ) from None
    return chain
