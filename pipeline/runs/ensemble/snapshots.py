"""Whether the networks that a stage's cycles ended with are averaged, in the place of the one that it kept.

Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free".
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline import tracking
from pipeline.evaluation.ensembles.gain import accuracy_and_loss
from pipeline.evaluation.predict import predict
from pipeline.runs.ensemble.networks import EvaluatedNetwork
from pipeline.runs.stage import SNAPSHOTS
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import device_of
from pipeline.system.console import say


def with_snapshots(
    upstreams: Sequence[Upstream], networks: Sequence[EvaluatedNetwork], run_id: str
) -> list[EvaluatedNetwork]:
    """The `networks` that these runs kept; in the place of one of them the snapshots of its run, where these are and
    the mean of their probabilities validates better. A sentence says so, and is a tag of the open run `run_id`."""
    chosen, told = [], []
    for up, kept in zip(upstreams, networks, strict=True):
        snapshots = _snapshots(up, kept)
        if not snapshots:
            chosen.append(kept)
            continue
        (accuracy, loss), (own_accuracy, own_loss) = _validate(snapshots, up), _validate([kept], up)
        is_better = (accuracy, -loss) > (own_accuracy, -own_loss)
        chosen += snapshots if is_better else [kept]
        told.append(
            f"The mean of the {len(snapshots)} snapshots of {kept.name} has a valid accuracy of {accuracy:.4f} and a "
            f"loss of {loss:.4f}, the network that it kept {own_accuracy:.4f} and {own_loss:.4f}: "
            f"{'the snapshots are averaged' if is_better else 'that one is evaluated'}."
        )
        say(f"  {told[-1]}")
    if told:
        tracking.set_tags(run_id, {tracking.SNAPSHOTS: " ".join(told)})
    return chosen


def _snapshots(up: Upstream, kept: EvaluatedNetwork) -> list[EvaluatedNetwork]:
    """Those of the nearest run, if it has any, in their order."""
    run_id = up.chain[0].run_id
    if not tracking.has_artifact(run_id, SNAPSHOTS):
        return []
    folders = sorted(tracking.artifact(run_id, SNAPSHOTS).iterdir())
    return [
        replace(kept, name=f"{kept.name}, cycle {number}", folder=folder) for number, folder in enumerate(folders, 1)
    ]


def _validate(networks: Sequence[EvaluatedNetwork], up: Upstream) -> tuple[float, float]:
    """The accuracy and the loss of the mean of their probabilities, on the validation pictures."""
    rows, size, device = up.manifest.rows("valid"), up.recipe.evaluate.batch_size, device_of(up.recipe)
    members = (one.load(device)[1] for one in networks)
    seen = [
        predict(member.network, member.pixels, rows, size, device, description=f"validating {member.name}")
        for member in members
    ]
    return accuracy_and_loss(np.mean(seen, axis=0), up.manifest.targets[rows])
