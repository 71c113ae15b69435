"""evaluate: one table of predictions, and all that is read from it; the served model, registered."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.command import main
from pipeline.contract import Job, RunRef, Stage
from pipeline.recipe import Recipe, command_line

STAGE = Stage(
    "evaluate",
    ("evaluate", "augment"),
    follows=("resize", "fine_tune", "train_head"),
    artifacts=("predictions.csv", "report.html", "report.md", "recipe.yaml"),
)
TRAINED = ("train_head", "fine_tune", "resize")


def run(recipe: Recipe, upstream: str | None) -> RunRef:
    """Look at the upstream run's network: on the test split, or where there is none, on the validation split."""
    from pipeline.execute import chain_of, run_stage
    from pipeline.fingerprint import source_digest
    from pipeline.pins import pinned

    chain = chain_of(STAGE, upstream)
    served = {"served_code": source_digest("pipeline.serving"), "served_pins": " ".join(pinned())}
    return run_stage(STAGE, recipe, chain, served, partial(work, recipe, chain))


def work(recipe: Recipe, chain: Sequence[RunRef], job: Job) -> None:
    """Predict once, then derive, draw, log and register."""
    from pipeline import tracking
    from pipeline.activations import read_last_activations
    from pipeline.augment import view_matrices
    from pipeline.checkpoint import load_checkpoint
    from pipeline.device import choose_device
    from pipeline.evaluation import evaluate
    from pipeline.evaluation_report import write_evaluation
    from pipeline.execute import pixels_opener, upstream_files, upstream_folder
    from pipeline.history import join_epochs
    from pipeline.manifest import load_manifest
    from pipeline.metrics import class_metrics
    from pipeline.nvjpeg import choose_decoder
    from pipeline.publishing import publish
    from pipeline.recipe import training_settings

    evaluate_ = recipe.evaluate
    device = choose_device(recipe.device)
    manifest = load_manifest(upstream_folder(chain, "manifest", "precompute"))
    checkpoint_folder = upstream_folder(chain, "checkpoint", chain[0].stage)
    network, checkpoint = load_checkpoint(checkpoint_folder)
    open_pixels = pixels_opener(
        chain, job, recipe.data.max_store_gib, recipe.data.max_logged_gib, choose_decoder(recipe.data.decoder, device)
    )
    pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit)
    views = view_matrices(recipe.augment.flip, recipe.augment.crop, evaluate_.tta_views)
    activations, body = (upstream_folder(chain, place, "precompute") for place in ("activations", "checkpoint"))
    evaluation = evaluate(
        network.to(device),
        manifest,
        pixels,
        views,
        evaluate_.batch_size,
        device,
        positive=evaluate_.positive_class,
        stored=read_last_activations(activations, body, recipe.precompute.cut, evaluate_.batch_size, device),
        duplicate_similarity=evaluate_.duplicate_similarity,
        epochs=join_epochs(upstream_files(chain, "epochs.csv", *TRAINED), recipe.train_head.stored_epochs),
        fine_tune_cycles=recipe.fine_tune.cycles,
        head_dropout=recipe.head.dropout,
        test_fraction=recipe.data.test_fraction,
        seed=recipe.seed,
    )
    with TemporaryDirectory() as folder:
        command = partial(command_line, recipe)
        shown, place = evaluate_.top_losses, Path(folder)
        write_evaluation(evaluation, network, pixels, shown, device, recipe.seed, command, place)
        tracking.log_folder(job.run_id, Path(folder))
    tracking.set_tags(job.run_id, {tracking.VERDICT: evaluation.verdict.name, tracking.EVALUATED_ON: evaluation.split})
    tracking.describe_run(job.run_id, evaluation.summary())
    publish(
        job.run_id,
        checkpoint_folder,
        manifest,
        pixels,
        temperature=evaluation.temperature,
        split=evaluation.split,
        metrics=evaluation.metrics,
        by_class=class_metrics(evaluation.judged, evaluation.classes),
        verdict=evaluation.verdict.words,
        settings=training_settings(recipe),
        register_as=evaluate_.register_as,
        champion_by=evaluate_.champion_by,
        onnx=evaluate_.onnx,
    )


if __name__ == "__main__":
    main(STAGE, __doc__, run)
