"""evaluate: one table of predictions, and every number derived from it; the served model, registered."""

from collections.abc import Sequence
from functools import partial

from pipeline import tracking
from pipeline.evaluation.evaluation import evaluate
from pipeline.evaluation.neighbours import NEIGHBOURS, save_neighbours
from pipeline.models.activations import read_last_activations
from pipeline.recipe.mistakes import check_positive_class
from pipeline.recipe.presets import command_line
from pipeline.recipe.schema import Recipe
from pipeline.reports.evaluation_report import first_advice, summarize, write_evaluation
from pipeline.runs.ensemble.networks import ensemble_inputs, load_members, open_networks, read_upstreams
from pipeline.runs.ensemble.snapshots import with_snapshots
from pipeline.runs.fingerprint import source_digest
from pipeline.runs.publish import pinned, publish
from pipeline.runs.runner import Job, run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.console import say
from pipeline.tracking import RunRef
from pipeline.training.heads.cross_validation import cross_validate
from stages.registry import STAGES, TRAINING


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Evaluate the upstream run's network on the test split, or, where there is none, on the validation split; of
    several upstream runs, with commas between them, the mean of their networks."""
    upstreams = read_upstreams(STAGES["evaluate"], recipe, upstream)
    up = upstreams[0]
    if recipe.evaluate.positive_class:
        check_positive_class(recipe.evaluate.positive_class, up.manifest.classes)
    served = {"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pinned())}
    advised_from = {"fine_tune_cycles": str(recipe.fine_tune.cycles)}  # what it follows may not depend on it
    inputs = served | advised_from | ensemble_inputs(upstreams)
    return run_stage(STAGES["evaluate"], up, inputs, partial(work, upstreams))


def work(upstreams: Sequence[Upstream], job: Job) -> None:
    """Predict once, then derive, draw, log and register."""
    up = upstreams[0]
    recipe, device = up.recipe, up.device
    networks = with_snapshots(upstreams, open_networks(upstreams, job.run_id), job.run_id)
    stores = up.folder("activations", "precompute"), up.folder("checkpoint", "precompute")
    stored = read_last_activations(*stores, recipe.precompute.cut, recipe.evaluate.batch_size, device)
    network, members = load_members(networks, device)
    folds = recipe.evaluate.cross_validation_folds
    out_of_fold = cross_validate(stored, up.manifest, folds, recipe.seed, device) if folds else None
    evaluation = evaluate(recipe, members, up.manifest, stored, up.epochs(*TRAINING), device, out_of_fold)
    for sentence in filter(None, (evaluation.predictions.uncalibrated, evaluation.ensemble)):
        say(f"  {sentence}")
    shown, command = recipe.evaluate.top_losses, partial(command_line, recipe)
    with tracking.new_files(job.run_id) as folder:
        write_evaluation(evaluation, network, networks[0].pixels, shown, command, device, folder)
    if len(evaluation.kept_rows):
        activations, trained_on = evaluation.kept_activations, len(up.manifest.rows("train"))
        with tracking.new_files(job.run_id, NEIGHBOURS) as folder:
            kept, pixels = up.manifest.table.loc[evaluation.kept_rows], networks[0].pixels
            save_neighbours(kept, pixels, activations, evaluation.valid_activations, trained_on, folder)
    tags = {tracking.VERDICT: evaluation.verdict.name, tracking.EVALUATED_ON: evaluation.split}
    tags |= {tracking.MEMBERS: ", ".join(one.chain[0].run_id for one in upstreams)} if len(upstreams) > 1 else {}
    tags |= {tracking.ADVICE: advice} if (advice := first_advice(evaluation, command)) else {}
    tracking.set_tags(job.run_id, tags)
    tracking.describe_run(job.run_id, summarize(evaluation))
    publish(job.run_id, networks, up.manifest, evaluation, recipe)
