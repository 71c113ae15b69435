"""Training that logs as it goes, and what every training stage leaves in its run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline import tracking
from pipeline.models.checkpoint import Checkpoint, save_checkpoint, save_state
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.recipe.training_sections import TrainHead, UnfrozenStage
from pipeline.reports.training_figures import training_figure
from pipeline.runs.stage import SNAPSHOTS, Job
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import augmentation_of, device_of, network_of, pixels_of, split_of
from pipeline.system.device import training_precision
from pipeline.system.tables import write_table
from pipeline.training.fit import Phase
from pipeline.training.history import best_metrics, describe_result, epoch_points, epoch_table, kept_metrics, step_table
from pipeline.training.joint.pictures import PicturePhase
from pipeline.training.phases import Training, train_in_phases
from pipeline.training.records import EpochRecord
from pipeline.training.resume import Backups
from pipeline.training.schedule import cycle_lengths
from pipeline.training.step import step_precision

# How deep the network is frozen where it is thawed group by group (Howard & Ruder 2018, "Universal Language Model
# Fine-tuning for Text Classification", section 3.3).
GRADUAL: tuple[Frozen, ...] = ("body", "early", "none")
TRAINED_BY = ("train_head", "fine_tune", "resize")


def train_unfrozen(
    up: Upstream,
    settings: UnfrozenStage,
    rates: Mapping[str, float],
    job: Job,
    frozen: Frozen = "none",
    image_px: int | None = None,
) -> None:
    """Train the upstream network on with augmentation, by a stage's section of the recipe, and log the result.

    `rates` are by layer group. Without `image_px`, images keep the size that the network was trained on.
    """
    network, checkpoint = network_of(up, *TRAINED_BY, image_px=image_px, drop_path=settings.drop_path)

    def on_pixels(frozen: Frozen, cycle_epochs: list[int]) -> Phase:
        told = {
            "label_smoothing": settings.label_smoothing,
            "fixed_statistics": "all" if settings.batchnorm == "fixed" else "none",
            "description": f"{'all layers' if frozen == 'none' else f'{frozen} frozen'}, {checkpoint.image_px} px",
            "warm_up": settings.warm_up,
            "is_compiled": up.recipe.compile,
        }
        phase = picture_phase(up, settings, frozen, rates, cycle_epochs, told)
        phase = replace(phase, drop_path=settings.drop_path)
        return phase.build(network, checkpoint, pixels_of(up, job.run_id, checkpoint))

    deeper = GRADUAL[: GRADUAL.index(frozen)] if settings.gradual_epochs else ()
    phases = [partial(on_pixels, one, [settings.gradual_epochs]) for one in deeper]
    cycles = cycle_lengths(settings.cycles, settings.cycle_len, settings.cycle_mult)
    train_and_log(job, network, [*phases, partial(on_pixels, frozen, cycles)], checkpoint, rates)


def picture_phase(
    up: Upstream,
    settings: UnfrozenStage | TrainHead,
    frozen: Frozen,
    rates: Mapping[str, float],
    cycle_epochs: list[int],
    told: Mapping[str, Any],
) -> PicturePhase:
    """A phase on pictures by a stage's section of the recipe, with cycles of `cycle_epochs`; `told` is what else a
    Phase holds, by name. Processes that help train in the precision that this machine takes."""
    device = device_of(up.recipe)
    precision = training_precision(up.recipe.training.precision, device)
    return PicturePhase(
        split_of(up, settings.fraction),
        augmentation_of(up.recipe),
        settings.batch_size,
        up.recipe.seed,
        frozen,
        rates,
        settings.weight_decay,
        up.recipe.training.model_copy(update={"precision": precision}),
        device.type,
        cycle_epochs,
        told,
    )


def log_precision(run_id: str, phase: Phase) -> None:
    """Tag the run with what the phase's training steps compute in."""
    precision = step_precision(phase.module, phase.options.precision)
    tracking.set_tags(run_id, {f"{tracking.RESOLVED}precision": precision})


def train_and_log(
    job: Job,
    network: Network,
    phases: Sequence[Callable[[], Phase]],
    checkpoint: Checkpoint,
    rates: Mapping[str, float],
) -> None:
    """Train through `phases`, resuming from a backup, and log each epoch as soon as it is done; then the best figures
    and those of the weights that are kept, the top rate of each layer group, the tables of epochs and steps with their
    figure, the trained network, and with `training.snapshots` the networks that its cycles ended with.

    `checkpoint` says how the network is built, and how far earlier stages have trained it.
    """

    def noted(build: Callable[[], Phase]) -> Phase:
        phase = build()
        log_precision(job.run_id, phase)
        return phase

    backups = Backups(job.folder, job.run_id)
    if backups.earlier:
        tracking.set_tags(job.run_id, {tracking.RESUMED: backups.earlier.run_id})

    def after_epoch(record: EpochRecord) -> None:
        tracking.log_points(job.run_id, epoch_points(record))
        job.after_epoch(record)

    trained = train_in_phases(
        Training(network, backups, after_epoch, checkpoint.epochs, checkpoint.steps),
        [partial(noted, build) for build in phases],
    )
    records, last = trained.records, trained.records[-1]
    top_rates = {f"top_rate_{group}": rate for group, rate in rates.items()}
    tracking.log_metrics(job.run_id, best_metrics(records) | kept_metrics(trained) | top_rates, step=last.step)
    tracking.describe_run(job.run_id, describe_result(trained))
    epochs, steps = epoch_table(records, trained.kept_epochs), step_table(records)
    kept_epochs = [] if trained.kept_epochs == [last.epoch] else trained.kept_epochs
    checkpoint = replace(checkpoint, epochs=last.epoch, steps=last.step, kept_epochs=kept_epochs)
    with tracking.new_files(job.run_id) as folder:
        (folder / "figures").mkdir()
        training_figure(epochs, steps).savefig(folder / "figures" / "training.png", dpi=120)
        write_table(epochs, folder / "epochs.csv")
        write_table(steps, folder / "steps.csv")
        save_checkpoint(network, checkpoint, folder / "checkpoint")
        for number, (epoch, state) in enumerate(backups.cycle_ends(records), 1):
            of_cycle = replace(checkpoint, kept_epochs=[epoch])
            save_state(state, of_cycle, folder / SNAPSHOTS / f"cycle_{number:03d}")
