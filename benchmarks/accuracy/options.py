"""Each option of the recipe on against off: how the network validates after fine_tune, by seed."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from benchmarks.accuracy.sets import recipe_for
from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs.ensemble.seeds import with_seed
from stages import evaluate
from stages.main import train

AS_IT_IS, CYCLES = "the recipe as it is", 4
# Keys of the recipe, as they are typed.
OPTIONS = (
    "head.hidden=0",
    "precompute.views=8",
    "train_head.stored_epochs=30",
    "fine_tune.lr_ratio=1",
    "fine_tune.lr_ratio=10",
    "fine_tune.warm_up=0",
    "fine_tune.batchnorm=batch",
    "fine_tune.label_smoothing=0",
    "fine_tune.weight_decay=0.1",
    "fine_tune.gradual_epochs=2",
    "fine_tune.drop_path=0.2",
    "training.keep=best_loss",
    "training.keep=best_accuracy",
    "training.keep=moving_average",
    "training.early_stop_epochs=2 training.keep=best_loss",
    "training.momentum=cycled",
    "training.clip_norm=1",
    "training.accumulate=2",
    "training.balance=weights",
    "training.balance=sampler",
    "training.precision=float32",
    "augment.strength=0 augment.flip=none",
    "augment.strength=2 augment.rotate_degrees=10 augment.zoom=1.1 augment.crop=0.9 augment.lighting=0.2",
    "augment.perspective=0.1",
    "augment.erase=0.25",
    "augment.trivial=true",
    "augment.mixup=0.2",
    "augment.cutmix=1",
    "seeds=3",
    "training.optimizer=sgd fine_tune.lr=auto",
)
# What the solar cells alone have.
OF_CELLS = (
    "data.soft_labels=false",
    "data.soft_labels=false data.uncertain_weight=0.5",
)
EPOCHS = 8  # of all layers
STAGES = "precompute,lr_find,train_head,fine_tune"


def tried_recipe(source: str) -> Recipe:
    """The recipe for a GPU of this set's kind, up to fine_tune, with one short cycle whose last epoch is kept."""
    given = {"stages": STAGES, "fine_tune.cycle_len": str(EPOCHS), "training.keep": "last"}
    return recipe_for(source, f"{'elpv' if source == 'elpv' else 'photos'}_gpu", given)


def options_for(recipe: Recipe) -> Mapping[str, Mapping[str, str]]:
    """The keys that this recipe is tried with, by how they are typed, first none; cycles have as many epochs together
    as its one cycle."""
    cycles = f"fine_tune.cycles={CYCLES} fine_tune.cycle_len={recipe.fine_tune.cycle_len // CYCLES}"
    options = [*OPTIONS, cycles, f"{cycles} training.keep=mean_of_cycles", f"{cycles} training.snapshots=true"]
    options += OF_CELLS if recipe.data.source == "elpv" else ()
    return {AS_IT_IS: {}} | {option: dict(one.split("=") for one in option.split()) for option in options}


def compare_options(name: str, source: str, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """For each option and seed the valid accuracy after real runs of the stages up to fine_tune, in the tracking store
    that is set: of the network that fine_tune keeps, or of what evaluate averages."""
    recipe = tried_recipe(source)
    for option, keys in options_for(recipe).items():
        for seed in seeds:
            with redirect_stdout(io.StringIO()):
                accuracy = _valid_accuracy(override_recipe(recipe, {**keys, "seed": str(seed)}))
            yield {"set": name, "option": option, "seed": seed, "valid_accuracy": accuracy}


def _valid_accuracy(recipe: Recipe) -> float:
    tuned = [
        dict(train(with_seed(recipe, seed), find_given=False))["fine_tune"]
        for seed in range(recipe.seed, recipe.seed + recipe.seeds)
    ]
    if recipe.seeds > 1 or recipe.training.snapshots:
        return evaluate.run(recipe, ",".join(ref.run_id for ref in tuned)).metrics["valid/accuracy"]
    return tuned[0].metrics["kept_valid_accuracy"]
