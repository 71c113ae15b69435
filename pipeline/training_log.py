"""Training with a record: what every training stage leaves in its run, and how one goes on from a checkpoint."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.augment import Augmentation
from pipeline.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.console import say
from pipeline.figures import training_figure
from pipeline.fit import EpochRecord, fit
from pipeline.history import best_metrics, describe_epoch, epoch_points, epoch_table, step_table
from pipeline.layer_groups import Frozen
from pipeline.manifest import load_manifest
from pipeline.network import Network
from pipeline.pixels import open_pixels
from pipeline.tune import pixel_batches, thaw, training_split


def train_on(
    run_id: str,
    manifest_folder: Path,
    checkpoint_folder: Path,
    *,
    image_px: int | None,
    frozen: Frozen,
    rates: Mapping[str, float],
    cycle_epochs: list[int],
    fraction: float,
    batch_size: int,
    weight_decay: float,
    label_smoothing: float,
    fixed_statistics: bool,
    augmentation: Augmentation,
    device: torch.device,
    max_store_gib: float,
    seed: int,
) -> None:
    """Go on training the network of a checkpoint, at `image_px` or at its own size, and log the result."""
    manifest = load_manifest(manifest_folder)
    network, checkpoint = load_checkpoint(checkpoint_folder, image_px)
    pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit, max_store_gib)
    split = training_split(manifest, fraction, seed)
    train, valid = pixel_batches(pixels, split, augmentation, batch_size, device, seed)
    optimizer = thaw(network.to(device), frozen, rates, weight_decay)
    epochs = fit(
        network,
        optimizer,
        train,
        valid,
        cycle_epochs,
        epochs_before=checkpoint.epochs,
        steps_before=checkpoint.steps,
        label_smoothing=label_smoothing,
        fixed_statistics=fixed_statistics,
        description=f"{'all layers' if frozen == 'none' else f'{frozen} frozen'}, {checkpoint.image_px} px",
    )
    log_trained(run_id, log_epochs(run_id, epochs), network, checkpoint, rates)


def log_epochs(run_id: str, records: Iterable[EpochRecord]) -> list[EpochRecord]:
    """Log each epoch as soon as it is done, and say it."""
    from pipeline import tracking

    done = []
    for record in records:
        tracking.log_points(run_id, epoch_points(record))
        say(describe_epoch(record))
        done.append(record)
    return done


def log_trained(
    run_id: str, records: list[EpochRecord], network: Network, checkpoint: Checkpoint, rates: Mapping[str, float]
) -> None:
    """Log the best figures, the top rate of each layer group, the tables of epochs and steps with their figure, and
    the trained network with how far it has come."""
    from pipeline import tracking

    last = records[-1]
    top_rates = {f"rate/{group}": rate for group, rate in rates.items()}
    tracking.log_metrics(run_id, best_metrics(records) | top_rates, step=last.step)
    epochs, steps = epoch_table(records), step_table(records)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "figures").mkdir()
        training_figure(epochs, steps).savefig(folder / "figures" / "training.png", dpi=120)
        epochs.to_csv(folder / "epochs.csv", index=False)
        steps.to_csv(folder / "steps.csv", index=False)
        save_checkpoint(network, replace(checkpoint, epochs=last.epoch, steps=last.step), folder / "checkpoint")
        tracking.log_folder(run_id, folder)
