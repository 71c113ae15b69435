"""resize: the same network goes on at a larger image size, frozen as deep as the recipe says."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.command import main
from pipeline.contract import Job, RunRef, Stage, go_on
from pipeline.rates import group_rates
from pipeline.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.fit import EpochRecord

STAGE = Stage(
    "resize",
    ("resize", "augment"),
    follows=("fine_tune", "train_head", "resize", "lr_find"),
    artifacts=("checkpoint", "recipe.yaml"),
)
TRAINED = ("train_head", "fine_tune", "resize")


def run(recipe: Recipe, upstream: str | None, after_epoch: "Callable[[EpochRecord], None]" = go_on) -> RunRef:
    """Train the upstream run's network on at `resize.image_px`; "auto" is the head's top rate there, or, after
    lr_find, its suggestion."""
    from pipeline.execute import chain_of, nearest, run_stage, suggested

    chain = chain_of(STAGE, upstream)
    trained = nearest(chain, *TRAINED)
    lr = recipe.resize.lr
    if lr == "auto":
        lr = suggested(chain[0]) if chain[0].stage == "lr_find" else trained.metrics["rate/head"]
    rates = group_rates(lr, recipe.resize.lr_ratio)
    return run_stage(STAGE, recipe, chain, {}, partial(work, recipe, chain, rates), after_epoch)


def work(recipe: Recipe, chain: Sequence[RunRef], rates: Mapping[str, float], job: Job) -> None:
    """Train at the larger size."""
    from pipeline.augment import augmentation
    from pipeline.device import choose_device
    from pipeline.execute import pixels_opener, upstream_folder
    from pipeline.nvjpeg import choose_decoder
    from pipeline.schedule import cycle_lengths
    from pipeline.training_log import train_on

    resize, data, device = recipe.resize, recipe.data, choose_device(recipe.device)
    open_pixels = pixels_opener(
        chain, job, data.max_store_gib, data.max_logged_gib, choose_decoder(data.decoder, device)
    )
    train_on(
        job,
        upstream_folder(chain, "manifest", "precompute"),
        upstream_folder(chain, "checkpoint", *TRAINED),
        open_pixels,
        image_px=resize.image_px,
        frozen=resize.freeze,
        rates=rates,
        cycle_epochs=cycle_lengths(resize.cycles, resize.cycle_len, resize.cycle_mult),
        fraction=resize.fraction,
        batch_size=resize.batch_size,
        weight_decay=resize.weight_decay,
        label_smoothing=resize.label_smoothing,
        fixed_statistics=resize.batchnorm == "fixed",
        augmentation=augmentation(**recipe.augment.model_dump()),
        device=device,
        seed=recipe.seed,
    )


if __name__ == "__main__":
    main(STAGE, __doc__, run)
