"""The work of evaluate: predict once, then derive, draw, log and register."""

from collections.abc import Sequence
from functools import partial

from pipeline import tracking
from pipeline.data.corrections import count_corrections
from pipeline.evaluation.evaluation import evaluate
from pipeline.evaluation.neighbours import NEIGHBOURS, save_neighbours
from pipeline.models.activations import read_last_activations
from pipeline.recipe.presets import command_line
from pipeline.reports.evaluation_report import first_advice, summarize, write_evaluation
from pipeline.runs.ensemble.networks import load_members, open_networks
from pipeline.runs.ensemble.snapshots import with_snapshots
from pipeline.runs.publish import publish
from pipeline.runs.stage import Job
from pipeline.runs.upstream import Upstream
from pipeline.runs.work.materials import device_of
from pipeline.system.console import say
from pipeline.training.heads.cross_validation import cross_validate
from stages.registry import TRAINING


def work(upstreams: Sequence[Upstream], job: Job) -> None:
    """Predict once, then derive, draw, log and register."""
    up = upstreams[0]
    manifest = up.decided_manifest
    recipe, device = up.recipe, device_of(up.recipe)
    networks = with_snapshots(upstreams, open_networks(upstreams, job.run_id), job.run_id)
    stores = up.folder("activations", "precompute"), up.folder("checkpoint", "precompute")
    stored = read_last_activations(*stores, recipe.precompute.cut, recipe.evaluate.batch_size, device)
    network, members = load_members(networks, device)
    folds = recipe.evaluate.cross_validation_folds
    out_of_fold = cross_validate(stored, manifest, folds, recipe.seed, device) if folds else None
    evaluation = evaluate(recipe, members, manifest, stored, up.epochs(*TRAINING), device, out_of_fold)
    sentences = count_corrections(manifest.corrected), evaluation.predictions.uncalibrated, evaluation.ensemble
    for sentence in filter(None, sentences):
        say(f"  {sentence}")
    shown, command = recipe.evaluate.top_losses, partial(command_line, recipe)
    with tracking.new_files(job.run_id) as folder:
        write_evaluation(evaluation, network, networks[0].pixels, shown, command, device, folder)
    if len(evaluation.kept_rows):
        activations, trained_on = evaluation.kept_activations, len(manifest.rows("train"))
        with tracking.new_files(job.run_id, NEIGHBOURS) as folder:
            kept, pixels = manifest.table.loc[evaluation.kept_rows], networks[0].pixels
            save_neighbours(kept, pixels, activations, evaluation.valid_activations, trained_on, folder)
    tags = {tracking.VERDICT: evaluation.verdict.name, tracking.EVALUATED_ON: evaluation.split}
    tags |= {tracking.MEMBERS: ", ".join(one.chain[0].run_id for one in upstreams)} if len(upstreams) > 1 else {}
    tags |= {tracking.ADVICE: advice} if (advice := first_advice(evaluation, command)) else {}
    tracking.set_tags(job.run_id, tags)
    tracking.describe_run(job.run_id, summarize(evaluation))
    publish(job.run_id, networks, manifest, evaluation, recipe)
