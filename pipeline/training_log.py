"""Training with a record: what every training stage leaves in its run, and how one goes on from a checkpoint."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.augment import Augmentation
from pipeline.batches import Batches
from pipeline.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.console import say
from pipeline.contract import Job
from pipeline.decode import Fit, Pixels
from pipeline.figures import training_figure
from pipeline.fit import EpochRecord, Position, fit
from pipeline.history import best_metrics, describe_epoch, epoch_points, epoch_table, step_table
from pipeline.in_hand import Checkpoints, InHand
from pipeline.interrupts import put_off
from pipeline.layer_groups import Frozen
from pipeline.manifest import Manifest, load_manifest
from pipeline.network import Network
from pipeline.tune import pixel_batches, thaw, training_split


@dataclass(frozen=True)
class Phase:
    """A part of a stage's training: `module`, the network or its head, is trained by `optimizer` on the batches, in
    cycles; see `fit`."""

    module: nn.Module
    optimizer: Optimizer
    train: Batches
    valid: Batches
    cycle_epochs: list[int]
    label_smoothing: float
    description: str
    fixed_statistics: bool = False


def train_on(
    job: Job,
    manifest_folder: Path,
    checkpoint_folder: Path,
    open_pixels: Callable[[Manifest, int, Fit], Pixels],
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
    seed: int,
) -> None:
    """Go on training the network of a checkpoint, at `image_px` or at its own size, and log the result."""
    manifest = load_manifest(manifest_folder)
    network, checkpoint = load_checkpoint(checkpoint_folder, image_px)

    def all_of_it() -> Phase:
        pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit)
        split = training_split(manifest, fraction, seed)
        train, valid = pixel_batches(pixels, split, augmentation, batch_size, device, seed)
        optimizer = thaw(network.to(device), frozen, rates, weight_decay)
        description = f"{'all layers' if frozen == 'none' else f'{frozen} frozen'}, {checkpoint.image_px} px"
        return Phase(network, optimizer, train, valid, cycle_epochs, label_smoothing, description, fixed_statistics)

    records = train_in_phases(job, network, [all_of_it], checkpoint.epochs, checkpoint.steps)
    log_trained(job.run_id, records, network, checkpoint, rates)


def train_in_phases(
    job: Job, network: Network, phases: Sequence[Callable[[], Phase]], epochs_before: int = 0, steps_before: int = 0
) -> list[EpochRecord]:
    """Train `network` through `phases`, each made when its turn comes, and log each epoch as soon as it is done.

    What is in hand is kept in the job's folder; where something lies there, training goes on from it, and the run's
    curve begins with the epochs that were done before. Ctrl-C and SIGTERM act when what is in hand is kept.
    """
    checkpoints = Checkpoints(job.folder, job.run_id)
    kept = checkpoints.newest()
    records = list(kept.records) if kept else []
    if kept:
        _say_where_it_goes_on(job, kept)
    for record in records:
        log_epoch(job.run_id, record)
        job.after_epoch(record)
    for number, build in enumerate(phases):
        if kept is None or number >= kept.phase:
            phase, start = build(), Position()
            if kept and number == kept.phase:
                kept.restore(network, phase.optimizer)
                start = kept.position
            _train_phase(job, network, phase, number, start, checkpoints, records, epochs_before, steps_before)
    return records


def _train_phase(
    job: Job,
    network: Network,
    phase: Phase,
    number: int,
    start: Position,
    checkpoints: Checkpoints,
    records: list[EpochRecord],
    epochs_before: int,
    steps_before: int,
) -> None:
    """Add the phase's epochs to `records`."""
    first = len(records) - start.epochs
    with put_off() as stopped:
        for moment in fit(
            phase.module,
            phase.optimizer,
            phase.train,
            phase.valid,
            phase.cycle_epochs,
            epochs_before=epochs_before + first,
            steps_before=records[first - 1].step if first else steps_before,
            label_smoothing=phase.label_smoothing,
            fixed_statistics=phase.fixed_statistics,
            description=phase.description,
            start=start,
            pauses=lambda: stopped() or checkpoints.are_due(),
        ):
            if isinstance(moment, EpochRecord):
                records.append(moment)
                log_epoch(job.run_id, moment)
                say(describe_epoch(moment))
                position = Position(len(records) - first)
                checkpoints.keep_after_epoch(network, phase.optimizer, number, position, records, stopped())
                job.after_epoch(moment)
            else:
                checkpoints.keep(network, phase.optimizer, number, moment, len(records))
            if stopped():
                return  # out of the block, at whose end it acts


def _say_where_it_goes_on(job: Job, kept: InHand) -> None:
    from pipeline import tracking

    within = len(kept.position.losses)
    where = " and ".join(
        ([f"epoch {kept.records[-1].epoch}"] if kept.records else []) + ([f"{within} batches"] if within else [])
    )
    say(f"  going on after {where}, from what run {kept.run_id} kept")
    tracking.set_tags(job.run_id, {tracking.RESUMED: kept.run_id})


def log_epoch(run_id: str, record: EpochRecord) -> None:
    """Log the points of one epoch."""
    from pipeline import tracking

    tracking.log_points(run_id, epoch_points(record))


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
