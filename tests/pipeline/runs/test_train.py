"""What a training stage logs in its run, as it trains and in the end."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from pipeline import tracking
from pipeline.data.augment import Augmentation
from pipeline.data.loader import Split, pixel_batches
from pipeline.models.checkpoint import Checkpoint, build_network, load_checkpoint
from pipeline.models.layer_groups import layer_groups
from pipeline.models.network import Network
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training_sections import TrainingOptions, UnfrozenStage
from pipeline.runs import train as train_module
from pipeline.runs.stage import Job, ignore_epoch
from pipeline.runs.train import train_and_log, train_unfrozen
from pipeline.training.fit import Phase
from pipeline.training.keep import Keep
from pipeline.training.optim import thaw
from pipeline.training.records import EpochRecord

pytestmark = pytest.mark.usefixtures("tracking_server")

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8)
SPLIT = Split(np.arange(16), np.arange(16, 24), np.arange(24) % 2)
AUGMENTATION = Augmentation("all", 10.0, 1.1, 0.9, 0.2, 0.75)
CHECKPOINT = Checkpoint("test_resnet", ["a", "b"], 8, 0.5, 32, "crop", grey=False, epochs=3, steps=12)
RATES = {"early": 1e-5, "late": 1e-4, "head": 1e-3}
EVERY_EPOCH = [16, 20, 24]  # the last steps of three epochs of four steps, after twelve steps
AfterEpoch = Callable[[EpochRecord], None]


def new_network() -> Network:
    torch.manual_seed(0)
    return build_network(CHECKPOINT)


def train(folder: Path, after_epoch: AfterEpoch = ignore_epoch, keep: Keep = "last", snapshots: bool = False) -> str:
    """Three epochs, in two cycles, in a run of their own; gives its id."""
    network = new_network()

    def phase() -> Phase:
        train, valid = pixel_batches(PIXELS, SPLIT, AUGMENTATION, 4, torch.device("cpu"), 0)
        options = TrainingOptions(keep=keep, snapshots=snapshots)
        return Phase(network, thaw(network, "none", RATES, 0.01), train, valid, [1, 2], options=options)

    with tracking.open_run("fine_tune", {tracking.STAGE: "fine_tune"}, {}) as run_id:
        train_and_log(Job(run_id, folder, after_epoch), network, [phase], CHECKPOINT, RATES)
    return run_id


def steps_of(run_id: str, metric: str) -> list[int]:
    return [point.step for point in MlflowClient().get_metric_history(run_id, metric)]


def resumed(run_id: str) -> str | None:
    """The status of the run from whose backup this one resumed."""
    from_run = MlflowClient().get_run(run_id).data.tags.get(tracking.RESUMED)
    return None if from_run is None else MlflowClient().get_run(from_run).info.status


def at_epoch(number: int, act: Callable[[], None]) -> AfterEpoch:
    def after_epoch(record: EpochRecord) -> None:
        if record.epoch == CHECKPOINT.epochs + number:
            act()

    return after_epoch


def crash() -> None:
    raise RuntimeError("out of the blue")


def test_each_epoch_is_logged_and_reported_as_soon_as_it_is_done(tmp_path):
    logged = []

    def after_epoch(record: EpochRecord) -> None:
        (run,) = MlflowClient().search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
        tracking.flush(run.info.run_id)
        logged.append((record.step, steps_of(run.info.run_id, "train/loss")))

    run_id = train(tmp_path, after_epoch)
    assert logged == [(step, EVERY_EPOCH[: number + 1]) for number, step in enumerate(EVERY_EPOCH)]
    assert steps_of(run_id, "valid/accuracy") == EVERY_EPOCH
    for group in RATES:
        assert steps_of(run_id, f"rate_{group}") == list(range(13, 25))
    assert resumed(run_id) is None


def test_the_result_is_the_best_figures_the_top_rates_the_tables_and_the_trained_network(tmp_path):
    run_id = train(tmp_path)
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert {group: metrics[f"top_rate_{group}"] for group in RATES} == RATES
    epochs = pd.read_csv(tracking.artifact(run_id, "epochs.csv"))
    steps = pd.read_csv(tracking.artifact(run_id, "steps.csv"))
    assert epochs["step"].tolist() == EVERY_EPOCH
    assert epochs["epoch"].tolist() == [4, 5, 6]
    assert steps["step"].tolist() == list(range(13, 25))
    assert set(RATES) < set(steps.columns)
    assert metrics["best_valid_accuracy"] == epochs["valid_accuracy"].max()
    assert metrics["best_valid_loss"] == pytest.approx(epochs["valid_loss"].min())
    assert tracking.artifact(run_id, "figures/training.png").read_bytes().startswith(b"\x89PNG")
    trained, checkpoint = load_checkpoint(tracking.artifact(run_id, "checkpoint"))
    assert checkpoint == replace(CHECKPOINT, epochs=6, steps=24)
    assert not torch.equal(trained.head[-1].weight, new_network().head[-1].weight)


def test_the_run_says_which_epochs_its_checkpoint_is_of_and_how_it_validates(tmp_path):
    run_id = train(tmp_path, keep="mean_of_cycles")
    _, checkpoint = load_checkpoint(tracking.artifact(run_id, "checkpoint"))
    assert checkpoint == replace(CHECKPOINT, epochs=6, steps=24, kept_epochs=[4, 6])
    assert pd.read_csv(tracking.artifact(run_id, "epochs.csv"))["kept"].tolist() == [True, False, True]
    metrics = MlflowClient().get_run(run_id).data.metrics
    assert metrics["kept_epoch"] == 6
    text = MlflowClient().get_run(run_id).data.tags[tracking.DESCRIPTION]
    assert text.startswith(f"Valid accuracy {metrics['kept_valid_accuracy']:.4f}, valid loss")
    assert {"kept_valid_loss", "kept_valid_accuracy", "kept_valid_macro_f1", "best_valid_loss_epoch"} < set(metrics)


def test_the_networks_that_its_cycles_ended_with_stay_with_the_run_if_asked_for(tmp_path):
    run_id = train(tmp_path / "with", snapshots=True)
    folders = sorted(tracking.artifact(run_id, "snapshots").iterdir())
    assert [folder.name for folder in folders] == ["cycle_001", "cycle_002"]
    (first, of_first), (last, of_last) = map(load_checkpoint, folders)
    assert [of_first, of_last] == [replace(CHECKPOINT, epochs=6, steps=24, kept_epochs=[epoch]) for epoch in (4, 6)]
    kept, _ = load_checkpoint(tracking.artifact(run_id, "checkpoint"))
    assert torch.equal(last.head[-1].weight, kept.head[-1].weight)
    assert not torch.equal(first.head[-1].weight, kept.head[-1].weight)
    assert not tracking.has_artifact(train(tmp_path / "without"), "snapshots")


@pytest.mark.parametrize("epoch", [2, 3])
def test_after_a_crash_the_curve_of_the_new_run_begins_with_the_epochs_that_were_done_before(tmp_path, epoch):
    with pytest.raises(RuntimeError):
        train(tmp_path, at_epoch(epoch, crash))
    run_id = train(tmp_path)
    assert resumed(run_id) == "FAILED"
    assert steps_of(run_id, "train/loss") == steps_of(run_id, "valid/accuracy") == EVERY_EPOCH
    assert steps_of(run_id, "rate_head") == list(range(13, 25))


def test_after_a_sigterm_the_run_is_killed_and_the_next_one_resumes_from_it(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at_epoch(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    run_id = train(tmp_path)
    assert resumed(run_id) == "KILLED"
    assert steps_of(run_id, "train/loss") == EVERY_EPOCH


def trained_unfrozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: UnfrozenStage, **more: object):
    """(The phase that was trained, the network, the arguments given to the upstream runs)."""
    network, asked = new_network(), {}

    def give_network(up: object, *stages: str, image_px: int | None, drop_path: float) -> tuple[Network, Checkpoint]:
        asked["network"] = (stages, image_px, drop_path)
        return network, CHECKPOINT

    def give_split(up: object, fraction: float) -> Split:
        asked["fraction"] = fraction
        return SPLIT

    up = SimpleNamespace(recipe=Recipe(seed=5, device="cpu", training=OPTIONS))
    monkeypatch.setattr(train_module, "network_of", give_network)
    monkeypatch.setattr(train_module, "split_of", give_split)
    monkeypatch.setattr(train_module, "pixels_of", lambda up, run_id, checkpoint: PIXELS)
    monkeypatch.setattr(train_module, "augmentation_of", lambda recipe: AUGMENTATION)
    phases: list[Phase] = []

    def note(job: Job, network: Network, builders: list[Callable[[], Phase]], *rest: object) -> None:
        phases.extend(build() for build in builders)

    monkeypatch.setattr(train_module, "train_and_log", note)
    train_unfrozen(up, settings, RATES, Job("run", tmp_path), **more)  # type: ignore[arg-type]
    (phase,) = phases
    return phase, network, asked


OPTIONS = TrainingOptions(precision="bfloat16", keep="best_loss")
SETTINGS = UnfrozenStage(
    fraction=0.5, batch_size=4, batchnorm="batch", weight_decay=0.3, label_smoothing=0.2, cycles=2, cycle_len=3,
    cycle_mult=2, warm_up=0.3, drop_path=0.1,
)  # fmt: skip


def test_every_key_of_a_training_section_reaches_the_phase(tmp_path, monkeypatch):
    phase, network, asked = trained_unfrozen(tmp_path, monkeypatch, SETTINGS)
    assert asked == {"network": (("train_head", "fine_tune", "resize"), None, 0.1), "fraction": 0.5}
    assert phase.module is network
    assert (phase.train.batch_size, phase.train.seed, phase.train.augmentation) == (4, 5, AUGMENTATION)
    assert phase.valid.augmentation is None
    assert (phase.train.rows.tolist(), phase.valid.rows.tolist()) == (list(range(16)), list(range(16, 24)))
    assert phase.cycle_epochs == [3, 6]
    assert phase.label_smoothing == 0.2
    assert (phase.fixed_statistics, phase.warm_up) == ("none", 0.3)
    assert phase.options == OPTIONS
    assert {group["weight_decay"] for group in phase.optimizer.param_groups} == {0.0, 0.3}
    assert {group["layer_group"]: group["lr"] for group in phase.optimizer.param_groups} == RATES
    fixed = SETTINGS.model_copy(update={"batchnorm": "fixed"})
    assert trained_unfrozen(tmp_path, monkeypatch, fixed)[0].fixed_statistics == "all"


def test_groups_stay_frozen_and_the_image_size_changes_where_it_is_asked_for(tmp_path, monkeypatch):
    phase, network, asked = trained_unfrozen(tmp_path, monkeypatch, SETTINGS, frozen="early", image_px=64)
    assert asked["network"][1] == 64
    early = set(layer_groups(network)["early"])
    assert {name for name, parameter in network.named_parameters() if not parameter.requires_grad} == early
    assert {group["layer_group"] for group in phase.optimizer.param_groups} == {"late", "head"}
