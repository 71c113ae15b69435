"""What keeping checkpoints and logging cost of a fine-tuning epoch, on the packaged pictures.

    python -m benchmarks.bookkeeping

Trains lite0 at 128 px for a few epochs as `fine_tune` does, with a checkpoint after each and an sqlite database, and
prints the share of the time that went into either, and into sending in the background. Some minutes on two cores.
"""

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS = 3


def main(folder: Path) -> None:
    """Measure and print."""
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
    from pipeline.runs import train as training_log
    from pipeline.runs.runner import Job
    from pipeline.tracking import sender
    from pipeline.training import resume as in_hand
    from pipeline.training.optim import thaw
    from pipeline.training.phases import Phase, train_in_phases
    from pipeline.training.schedule import group_rates

    seconds: dict[str, float] = defaultdict(float)
    training_log.log_epoch = _timed(training_log.log_epoch, "logging", seconds)
    keep = in_hand.Backups.save_after_epoch
    in_hand.Backups.save_after_epoch = _timed(keep, "checkpoints", seconds)  # type: ignore[method-assign]
    sender.Outbox.send = _timed(sender.Outbox.send, "sending (CPU)", seconds, time.thread_time)  # type: ignore

    recipe = Recipe()
    manifest = build_manifest(list_source("elpv", []), 0.15, 0.25, 0.01, seed=0)
    pixels = open_pixels(manifest, 128, "crop")
    facts = Checkpoint(recipe.model.backbone, manifest.classes, 512, 0.5, 128, "crop", manifest.is_grey)
    network = build_network(facts)
    load_weights(network.body, facts.backbone, find_weights(facts.backbone, "auto", 0))

    def phase() -> Phase:
        split = training_split(manifest, 1.0, 0)
        how = augmentation(**recipe.augment.model_dump())
        train, valid = pixel_batches(pixels, split, how, recipe.fine_tune.batch_size, torch.device("cpu"), 0)
        optimizer = thaw(network, "none", group_rates(1e-4, 10), 0.01)
        return Phase(network, optimizer, train, valid, [EPOCHS], 0.0, "all layers", fixed_statistics=True)

    with tracking.open_run("fine_tune", {tracking.STAGE: "fine_tune"}, {}) as run_id:
        started = time.perf_counter()
        train_in_phases(Job(run_id, folder / "in hand"), network, [phase])
        whole = time.perf_counter() - started
    print(f"an epoch: {whole / EPOCHS:.1f} s")
    for name, spent in seconds.items():
        print(f"{name}: {spent / whole:.2%}")
    print(f"together: {sum(seconds.values()) / whole:.2%}")


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
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    with tempfile.TemporaryDirectory() as name:
        os.environ["THAW_CACHE"] = f"{name}/cache"
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{name}/mlflow.db"
        os.environ["MLFLOW_ARTIFACT_ROOT"] = name
        os.chdir(Path(__file__).parents[1])
        main(Path(name))
