"""What backups and logging cost of a fine-tuning epoch, on the packaged pictures.

    python -m benchmarks.bookkeeping [--epochs N]

Trains lite0 at 128 px for a few epochs as `fine_tune` does, with a backup after each and an sqlite database, and prints
the share of the time that went into either, and into sending in the background. Some minutes on two cores.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

# As the commands do, before torch is loaded: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch

from pipeline import tracking
from pipeline.data.augment import augmentation
from pipeline.data.loader import pixel_batches, training_split
from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import open_pixels
from pipeline.models.body import load_weights
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.weights import find_weights
from pipeline.recipe.schema import Recipe
from pipeline.tracking.outbox import Outbox
from pipeline.training.fit import Phase
from pipeline.training.history import epoch_points
from pipeline.training.optim import thaw
from pipeline.training.phases import Training, train_in_phases
from pipeline.training.resume import Backups
from pipeline.training.schedule import group_rates


def main(folder: Path, epochs: int) -> dict[str, float]:
    """Measure and print; gives the shares."""
    seconds: dict[str, float] = defaultdict(float)
    Backups.save_after_epoch = _timed(Backups.save_after_epoch, "backups", seconds)  # type: ignore[method-assign]
    log_points = _timed(tracking.log_points, "logging", seconds)
    Outbox.send = _timed(Outbox.send, "sending (CPU)", seconds, time.thread_time)  # type: ignore[method-assign]

    recipe = Recipe()
    manifest = build_manifest(list_source("elpv", []), 0.15, 0.25, 0.01, seed=0)
    pixels = open_pixels(manifest, 128, "crop")
    facts = Checkpoint(recipe.model.backbone, manifest.classes, 512, 0.5, 128, "crop", manifest.is_grey)
    network = build_network(facts)
    load_weights(network.body, facts.backbone, find_weights(facts.backbone, "auto", 0))

    def phase() -> Phase:
        split, varied = training_split(manifest, 1.0, 0), augmentation(**recipe.augment.model_dump())
        train, valid = pixel_batches(pixels, split, varied, recipe.fine_tune.batch_size, torch.device("cpu"), 0)
        optimizer = thaw(network, "none", group_rates(1e-4, 10), 0.01)
        return Phase(network, optimizer, train, valid, [epochs], fixed_statistics="body", description="all layers")

    with tracking.open_run("fine_tune", {tracking.STAGE: "fine_tune"}, {}) as run_id:
        started = time.perf_counter()
        backups = Backups(folder / "backups", run_id)
        train_in_phases(Training(network, backups, lambda record: log_points(run_id, epoch_points(record))), [phase])
        whole = time.perf_counter() - started
    print(f"an epoch: {whole / epochs:.1f} s")
    for name, spent in seconds.items():
        print(f"{name}: {spent / whole:.2%}")
    print(f"together: {sum(seconds.values()) / whole:.2%}")
    return {name: spent / whole for name, spent in seconds.items()}


def _timed(
    function: Callable[..., Any], name: str, seconds: dict[str, float], clock: Callable[[], float] = time.perf_counter
) -> Callable[..., Any]:
    lock = threading.Lock()

    def timed(*arguments: Any, **more: Any) -> Any:
        started = clock()
        try:
            return function(*arguments, **more)
        finally:
            with lock:
                seconds[name] += clock() - started

    return timed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file to write the shares to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        os.environ["THAW_CACHE"] = f"{name}/cache"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        os.environ["MLFLOW_ARTIFACT_ROOT"] = name
        os.chdir(Path(__file__).parents[1])
        shares = main(Path(name), given.epochs)
    if given.json:
        given.json.write_text(json.dumps(shares), encoding="utf-8")
