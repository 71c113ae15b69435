"""evaluate: one table of predictions, and every number derived from it; the served model, registered."""

from functools import partial

from pipeline import tracking
from pipeline.evaluation.evaluation import evaluate
from pipeline.evaluation.neighbours import NEIGHBOURS, save_neighbours
from pipeline.models.activations import read_last_activations
from pipeline.models.engine.passes import frozen_network
from pipeline.recipe.mistakes import check_positive_class
from pipeline.recipe.presets import command_line
from pipeline.recipe.schema import Recipe
from pipeline.reports.evaluation_report import first_advice, summarize, write_evaluation
from pipeline.runs.fingerprint import source_digest
from pipeline.runs.publish import pinned, publish
from pipeline.runs.runner import Job, run_stage
from pipeline.runs.upstream import Upstream
from pipeline.system.console import say
from pipeline.tracking import RunRef
from stages.registry import STAGES, TRAINING


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Evaluate the upstream run's network on the test split, or, where there is none, on the validation split."""
    up = Upstream.of(STAGES["evaluate"], recipe, upstream)
    if recipe.evaluate.positive_class:
        check_positive_class(recipe.evaluate.positive_class, up.manifest.classes)
    served = {"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pinned())}
    advised_from = {"fine_tune_cycles": str(recipe.fine_tune.cycles)}  # what it follows may not depend on it
    return run_stage(STAGES["evaluate"], up, served | advised_from, partial(work, up))


def work(up: Upstream, job: Job) -> None:
    """Predict once, then derive, draw, log and register."""
    recipe, stage, device = up.recipe, up.chain[0].stage, up.device
    network, checkpoint = up.network(stage)
    network.to(device)
    pixels = up.pixels(job.run_id, checkpoint)
    stores = up.folder("activations", "precompute"), up.folder("checkpoint", "precompute")
    stored = read_last_activations(*stores, recipe.precompute.cut, recipe.evaluate.batch_size, device)
    frozen = frozen_network(network, checkpoint, pixels, len(pixels))
    evaluation = evaluate(recipe, frozen, up.manifest, pixels, stored, up.epochs(*TRAINING), device)
    if evaluation.predictions.uncalibrated:
        say(f"  {evaluation.predictions.uncalibrated}")
    shown, command = recipe.evaluate.top_losses, partial(command_line, recipe)
    with tracking.new_files(job.run_id) as folder:
        write_evaluation(evaluation, network, pixels, shown, command, device, folder)
    if len(evaluation.kept_rows):
        activations, trained_on = evaluation.kept_activations, len(up.manifest.rows("train"))
        with tracking.new_files(job.run_id, NEIGHBOURS) as folder:
            kept = up.manifest.table.loc[evaluation.kept_rows]
            save_neighbours(kept, pixels, activations, evaluation.valid_activations, trained_on, folder)
    tags = {tracking.VERDICT: evaluation.verdict.name, tracking.EVALUATED_ON: evaluation.split}
    tags |= {tracking.ADVICE: advice} if (advice := first_advice(evaluation, command)) else {}
    tracking.set_tags(job.run_id, tags)
    tracking.describe_run(job.run_id, summarize(evaluation))
    publish(job.run_id, up.folder("checkpoint", stage), up.manifest, pixels, evaluation, recipe)
