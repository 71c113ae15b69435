"""fine_tune: all layers, each group at its own rate, in cosine cycles with warm restarts."""

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
    "fine_tune",
    ("fine_tune", "augment"),
    follows=("lr_find", "train_head", "fine_tune", "resize"),
    artifacts=("checkpoint", "recipe.yaml"),
)
TRAINED = ("train_head", "fine_tune", "resize")


def run(recipe: Recipe, upstream: str | None, after_epoch: "Callable[[EpochRecord], None]" = go_on) -> RunRef:
    """Unfreeze the upstream run's network and train it on at the same image size."""
    from pipeline.execute import chain_of, given_or_suggested, nearest, run_stage

    chain = chain_of(STAGE, upstream)
    nearest(chain, *TRAINED)
    lr = given_or_suggested(recipe.fine_tune.lr, chain, "fine_tune.lr")
    rates = group_rates(lr, recipe.fine_tune.lr_ratio)
    return run_stage(STAGE, recipe, chain, {}, partial(work, recipe, chain, rates), after_epoch)


def work(recipe: Recipe, chain: Sequence[RunRef], rates: Mapping[str, float], job: Job) -> None:
    """Train all layers."""
    from pipeline.augment import augmentation
    from pipeline.device import choose_device
    from pipeline.execute import pixels_opener, upstream_folder
    from pipeline.nvjpeg import choose_decoder
    from pipeline.schedule import cycle_lengths
    from pipeline.training_log import train_on

    fine_tune, data, device = recipe.fine_tune, recipe.data, choose_device(recipe.device)
    open_pixels = pixels_opener(
        chain, job, data.max_store_gib, data.max_logged_gib, choose_decoder(data.decoder, device)
    )
    train_on(
        job,
        upstream_folder(chain, "manifest", "precompute"),
        upstream_folder(chain, "checkpoint", *TRAINED),
        open_pixels,
        image_px=None,
        frozen="none",
        rates=rates,
        cycle_epochs=cycle_lengths(fine_tune.cycles, fine_tune.cycle_len, fine_tune.cycle_mult),
        fraction=fine_tune.fraction,
        batch_size=fine_tune.batch_size,
        weight_decay=fine_tune.weight_decay,
        label_smoothing=fine_tune.label_smoothing,
        fixed_statistics=fine_tune.batchnorm == "fixed",
        augmentation=augmentation(**recipe.augment.model_dump()),
        device=device,
        seed=recipe.seed,
    )


if __name__ == "__main__":
    main(STAGE, __doc__, run)
