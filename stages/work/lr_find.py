"""The work of lr_find: test, suggest, log."""

from dataclasses import replace

import torch

from pipeline import tracking
from pipeline.models.activations import activation_batches, read_activations
from pipeline.models.layer_groups import FixedStatistics
from pipeline.recipe.schema import frozen_in, trained_next
from pipeline.recipe.training_sections import Resize, TrainHead
from pipeline.reports.lr_finder_figures import lr_find_figure
from pipeline.runs.stage import Job
from pipeline.runs.train import log_precision, picture_phase
from pipeline.runs.upstream import SUGGESTED, Upstream
from pipeline.runs.work.materials import device_of, network_of, pixels_of, split_of
from pipeline.system.console import say
from pipeline.system.tables import write_table
from pipeline.training.joint.helpers import find_together
from pipeline.training.lr_finder import Curve, choose_suggestion, curve_table, range_test, require_suggestion, suggest
from pipeline.training.optim import thaw_above
from pipeline.training.schedule import thawed_rates


def work(up: Upstream, job: Job) -> None:
    """Test, suggest, log."""
    is_unfrozen = up.chain[0].stage != "precompute"
    rule: str = up.recipe.lr_find.suggestion_unfrozen if is_unfrozen else up.recipe.lr_find.suggestion
    curve = _on_pixels(up, job) if is_unfrozen else _on_activations(up)
    found = suggest(curve, is_unfrozen)
    chosen, suggested = choose_suggestion(found, rule, curve, up.recipe.training.optimizer)
    with tracking.new_files(job.run_id) as folder:
        write_table(curve_table(curve), folder / "curve.csv")
        (folder / "figures").mkdir()
        lr_find_figure(curve, found, chosen).savefig(folder / "figures" / "lr_find.png", dpi=120)
    points = [("lr_find/loss", float(loss), step) for step, loss in enumerate(curve.smoothed)]
    points += [("lr_find/lr", float(rate), step) for step, rate in enumerate(curve.rates)]
    points += [(f"suggestion/{name}", rate, 0) for name, rate in found.items() if rate is not None]
    points += [] if suggested is None else [(SUGGESTED, suggested, 0)]
    tracking.log_points(job.run_id, points)
    rate = require_suggestion(suggested, chosen, f"figures/lr_find.png of run {job.run_id}")
    say(f"  suggested rate: {rate:.2e} ({chosen}), found in {len(curve.rates)} batches")


def _on_activations(up: Upstream) -> Curve:
    recipe, settings, tested = up.recipe, up.recipe.lr_find, up.recipe.train_head
    network, checkpoint = network_of(up, "precompute")
    torch.manual_seed(recipe.seed)
    network.reset_head(recipe.head.hidden, recipe.head.dropout)
    stored = read_activations(up.folder("activations", "precompute"))
    train, _ = activation_batches(
        stored, split_of(up, tested.fraction), tested.batch_size, device_of(recipe), recipe.seed
    )
    cut = recipe.precompute.cut, checkpoint.image_px
    rates = thawed_rates(settings.end_lr, tested.lr_ratio, tested.freeze)
    above, optimizer = thaw_above(
        network.move_to(device_of(recipe), 0), *cut, tested.freeze, rates, tested.weight_decay, recipe.training
    )
    fixed: FixedStatistics = "body" if tested.batchnorm == "fixed" else "none"
    return range_test(above, optimizer, train, settings, fixed, recipe.training, tested.label_smoothing)


def _on_pixels(up: Upstream, job: Job) -> Curve:
    settings, tested = up.recipe.lr_find, trained_next(up.recipe, [ref.stage for ref in up.chain])
    assert not isinstance(tested, TrainHead)
    size = {"image_px": tested.image_px} if isinstance(tested, Resize) else {}
    network, checkpoint = network_of(up, up.chain[0].stage, drop_path=tested.drop_path, **size)
    told = {
        "label_smoothing": tested.label_smoothing,
        "fixed_statistics": "all" if tested.batchnorm == "fixed" else "none",
    }
    rates = thawed_rates(settings.end_lr, tested.lr_ratio, frozen_in(tested))
    phase = replace(picture_phase(up, tested, frozen_in(tested), rates, [], told), drop_path=tested.drop_path)
    built = phase.build(network, checkpoint, pixels_of(up, job.run_id, checkpoint))
    log_precision(job.run_id, built)
    return find_together(network, built, settings)
