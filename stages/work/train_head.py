"""The work of train_head: both phases, one after the other, as one run of epochs."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from pipeline import tracking
from pipeline.models.activations import activation_batches, read_activations
from pipeline.models.layer_groups import FixedStatistics
from pipeline.reports.data_figures import augmented_figure
from pipeline.runs.stage import Job
from pipeline.runs.train import picture_phase, train_and_log
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import augmentation_of, device_of, network_of, pixels_of, split_of
from pipeline.training.fit import Phase
from pipeline.training.optim import thaw_above
from pipeline.training.schedule import cycle_lengths


def work(up: Upstream, rates: Mapping[str, float], job: Job) -> None:
    """Both phases, one after the other, as one run of epochs."""
    recipe, settings, device = up.recipe, up.recipe.train_head, device_of(up.recipe)
    network, checkpoint = network_of(up, "precompute")
    torch.manual_seed(recipe.seed)
    network.reset_head(recipe.head.hidden, recipe.head.dropout)
    checkpoint = replace(checkpoint, hidden=recipe.head.hidden, dropout=recipe.head.dropout)
    pixels, split = pixels_of(up, job.run_id, checkpoint), split_of(up, settings.fraction)
    with tracking.new_files(job.run_id, "figures") as folder:
        augmented_figure(up.manifest, pixels, augmentation_of(recipe), recipe.seed).savefig(
            folder / "augmented.png", dpi=110
        )
    fixed: FixedStatistics = "body" if settings.batchnorm == "fixed" else "none"
    smoothing, trained = settings.label_smoothing, " and ".join(rates)
    phase = partial(Phase, label_smoothing=smoothing, warm_up=settings.warm_up, options=recipe.training)

    def on_activations() -> Phase:
        stored = read_activations(up.folder("activations", "precompute"))
        views = up.folder("views", "precompute") if recipe.precompute.views else None
        batches = activation_batches(stored, split, settings.batch_size, device, recipe.seed, views)
        cut = recipe.precompute.cut, checkpoint.image_px
        network.move_to(device, settings.stored_epochs * len(split.train) * checkpoint.image_px**2)
        above, optimizer = thaw_above(network, *cut, settings.freeze, rates, settings.weight_decay, recipe.training)
        shown = f"{trained}, stored"
        return phase(above, optimizer, *batches, [settings.stored_epochs], fixed_statistics=fixed, description=shown)

    def on_pixels() -> Phase:
        cycles = cycle_lengths(settings.cycles, settings.cycle_len, settings.cycle_mult)
        told = {
            "label_smoothing": smoothing,
            "fixed_statistics": "all" if fixed == "body" and settings.stored_epochs else fixed,
            "description": f"{trained}, augmented",
            "warm_up": settings.warm_up,
            "is_compiled": recipe.compile,
        }
        return picture_phase(up, settings, settings.freeze, rates, cycles, told).build(network, checkpoint, pixels)

    phases = ([on_activations] if settings.stored_epochs else []) + ([on_pixels] if settings.cycles else [])
    train_and_log(job, network, phases, checkpoint, rates)
