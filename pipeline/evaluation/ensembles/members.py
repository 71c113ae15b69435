"""The networks that are evaluated: their probabilities are averaged, and each is validated by itself too."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.data.decode import Pixels
from pipeline.data.manifest import Manifest
from pipeline.evaluation.ensembles.gain import accuracy_and_loss
from pipeline.evaluation.predict import Probabilities, predict, predict_with_activations, predictions_table
from pipeline.models.engine.passes import Frozen
from pipeline.system.arrays import Rows

Activations = npt.NDArray[np.float16]
COLUMNS = ("network", "accuracy", "loss")


@dataclass(frozen=True)
class Member:
    """A network that is evaluated: its `name`, what computes it, and the manifest's pictures at its size."""

    name: str
    network: Frozen
    pixels: Pixels


@dataclass(frozen=True)
class MemberPredictions:
    """What the members predict: the `table` of their mean (see `predictions_table`); of the first of them the head's
    input for the validation pictures, `valid_activations`, and for the training pictures that are kept,
    `kept_activations`; and, as `members`, a row for each with its `network`, by name, and its `accuracy` and `loss` on
    the validation pictures."""

    table: pd.DataFrame
    valid_activations: Activations
    kept_activations: Activations
    members: pd.DataFrame


def predict_members(
    members: Iterable[Member],
    manifest: Manifest,
    views: Tensor,
    batch_size: int,
    device: torch.device,
    split: str,
    kept: Rows,
) -> MemberPredictions:
    """Predict every picture once as it is, and those of `split` in all `views` too, the first of which is the picture
    as it is; all by one member after the other, so that no two have to be in memory. `kept` are training rows."""
    rows_of = {name: manifest.rows(name) for name in ("train", "valid", "test")}
    rows = np.concatenate(list(rows_of.values()))
    is_valid, is_evaluated = np.isin(rows, rows_of["valid"]), np.isin(rows, rows_of[split])
    plain = tta = np.zeros((len(rows), len(manifest.classes)))
    of_first: tuple[Activations, Activations] | None = None
    found: list[tuple[str, float, float]] = []
    for member in members:
        passes = _Passes(member, batch_size, device, f", network {len(found) + 1}" if found else "")
        of_valid, valid_activations = passes.with_activations(rows_of["valid"], "predicting valid")
        of_train, kept_activations = passes.with_activations(rows_of["train"], "predicting train", kept)
        of_test = [passes.predict(rows_of["test"], "predicting test")] if len(rows_of["test"]) else []
        own_plain = np.concatenate([of_train, of_valid, *of_test])
        own_tta = np.full_like(own_plain, np.nan)
        own_tta[is_evaluated] = own_plain[is_evaluated]  # the first view
        if len(further := views[1:]):
            seen = passes.predict(rows_of[split], "predicting with TTA", further)
            own_tta[is_evaluated] = (own_plain[is_evaluated] + len(further) * seen) / len(views)
        plain, tta = plain + own_plain, tta + own_tta
        of_first = of_first or (valid_activations, kept_activations)
        found.append((member.name, *accuracy_and_loss(own_plain[is_valid], manifest.targets[rows_of["valid"]])))
    assert of_first is not None, "there is at least one network"
    table = predictions_table(manifest.table.iloc[rows], manifest.classes, plain / len(found), tta / len(found))
    return MemberPredictions(table, *of_first, pd.DataFrame(found, columns=list(COLUMNS)))


@dataclass(frozen=True)
class _Passes:
    """What goes through a member, `batch_size` pictures at a time; `shown` is added to what is shown meanwhile."""

    member: Member
    batch_size: int
    device: torch.device
    shown: str

    def predict(self, rows: Rows, description: str, views: Tensor | None = None) -> Probabilities:
        """The result of `predict`."""
        network, pixels = self.member.network, self.member.pixels
        return predict(network, pixels, rows, self.batch_size, self.device, views, f"{description}{self.shown}")

    def with_activations(
        self, rows: Rows, description: str, kept: Rows | None = None
    ) -> tuple[Probabilities, Activations]:
        """The result of `predict_with_activations`."""
        network, pixels, shown = self.member.network, self.member.pixels, f"{description}{self.shown}"
        return predict_with_activations(network, pixels, rows, self.batch_size, self.device, shown, kept)
