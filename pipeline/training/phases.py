"""A stage's training, phase by phase, resumed from the backup of a run that was stopped or killed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.models.network import Network
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.console import say
from pipeline.system.processes import defer_signals
from pipeline.training.average import MovingAverage
from pipeline.training.fit import Phase, TrainingProgress, fit
from pipeline.training.history import describe_epoch, describe_kept
from pipeline.training.joint.helpers import helped
from pipeline.training.keep import Snapshot, Trained, ends_cycle, keep_snapshot, snapshot_after, stops_early
from pipeline.training.records import EpochRecord
from pipeline.training.resume import Backup, Backups, TrainingState


@dataclass(frozen=True)
class Training:
    """What all phases of a stage share: the `network`, its `backups`, the function to call `after_epoch`, and the
    epochs and steps for which earlier stages have trained it."""

    network: Network
    backups: Backups
    after_epoch: Callable[[EpochRecord], None]
    epochs_before: int = 0
    steps_before: int = 0


def train_in_phases(training: Training, phases: Sequence[Callable[[], Phase]]) -> Trained:
    """Train through `phases`, each built when its turn comes; in the end the network has the weights that are kept.

    If an earlier run left a backup, training resumes from it, and `after_epoch` is first called with the epochs that
    were completed before. Ctrl-C and SIGTERM take effect once the current step has been saved.
    """
    backup = training.backups.earlier
    records = list(backup.records) if backup else []
    if backup:
        _describe_backup(backup)
    for record in records:
        training.after_epoch(record)
    snapshot = backup.snapshot if backup else Snapshot()
    first = backup.phase if backup else 0
    for number, build in enumerate(phases[first:], first):
        phase, start = build(), TrainingProgress()
        if backup and number == backup.phase:
            backup.restore(training.network, phase.optimizer)
            start = backup.progress
        is_last = number == len(phases) - 1
        snapshot = _train_phase(training, phase, number, start, records, snapshot, is_last)
    trained = keep_snapshot(snapshot, phase, training.network, records)
    if phase.options.keep != "last":
        say(describe_kept(trained))
    return trained


def _train_phase(
    training: Training,
    phase: Phase,
    number: int,
    start: TrainingProgress,
    records: list[EpochRecord],
    snapshot: Snapshot,
    is_last: bool,
) -> Snapshot:
    """Add the phase's epochs to `records`; gives the weights to keep then, which were `snapshot` before. Only those
    that the cycles of the last phase end with, where all is thawed that will be, are snapshots."""
    network, backups, options = training.network, training.backups, phase.options
    first = len(records) - start.epochs
    epochs_before = training.epochs_before + first
    steps_before = records[first - 1].step if first else training.steps_before
    average = None
    if options.keep == "moving_average":
        steps = start.epochs * len(phase.train) + len(start.losses)
        average = MovingAverage(network.state_dict(), options.average_decay, steps)
        if training.backups.earlier is not None and steps:
            average.restore(training.backups.earlier.average)
    if _is_over(records, first, options):
        return snapshot
    before = epochs_before, steps_before
    with defer_signals() as stopped, helped(network, phase, start, before) as in_step:
        moments = fit(phase, *before, start, lambda: stopped() or backups.are_due(), average)
        for moment in in_step(moments):
            if isinstance(moment, EpochRecord):
                records.append(moment)
                say(describe_epoch(moment))
                training.after_epoch(moment)
                progress = TrainingProgress(len(records) - first)
                if options.snapshots and is_last and ends_cycle(phase, progress.epochs):
                    # Before the backup, so that one that is resumed from has all that went before it.
                    backups.save_cycle_end(network, moment.epoch)
                snapshot = snapshot_after(snapshot, phase, network, records, progress.epochs, average)
                state = TrainingState(network, phase.optimizer, snapshot, average)
                backups.save_after_epoch(state, number, progress, records, stopped())
                if _is_over(records, first, options):
                    break
            else:
                backups.save(TrainingState(network, phase.optimizer, snapshot, average), number, moment, len(records))
            if stopped():
                break  # out of the block, at whose end the signal takes effect
    return snapshot


def _is_over(records: list[EpochRecord], first: int, options: TrainingOptions) -> bool:
    """Whether a phase whose epochs are the records from number `first` on ends here, before its last epoch, since its
    validation loss no longer falls or the stage's time is used up; a sentence says so."""
    patience = options.early_stop_epochs
    if stops_early([(record.valid_loss, record.valid_accuracy) for record in records[first:]], patience):
        say(f"  the validation loss has not fallen for {patience} epochs (training.early_stop_epochs)")
        return True
    seconds = [record.seconds for record in records]
    if options.max_minutes and seconds and sum(seconds) + max(seconds) > 60 * options.max_minutes:
        say(f"  another epoch would take more than {options.max_minutes:g} minutes in all (training.max_minutes)")
        return True
    return False


def _describe_backup(backup: Backup) -> None:
    within = len(backup.progress.losses)
    done = ([f"epoch {backup.records[-1].epoch}"] if backup.records else []) + ([f"{within} batches"] if within else [])
    say(f"  resumed after {' and '.join(done)}, from the backup of run {backup.run_id}")
