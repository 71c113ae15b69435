"""What train_head trains by, sweep_head trains its heads by, or refuses: each key of both sections."""

from collections.abc import Callable, Iterator

import mlflow
import pandas as pd
import pytest

from pipeline.recipe.recipe_file import override_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training_sections import TrainHead, TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.records import kept_name
from stages import sweep_head
from stages.registry import check_stored_heads
from tests.drawn_pictures import draw_pictures
from tests.stages.chains import StageRun, recipe_on, run_stage_on
from tests.stages.watching import watched
from tests.workplace import Workplace

# One head, for epochs enough to have been best before, and to stop early.
ALONE = {
    "train_head.stored_epochs": "8", "train_head.cycles": "0", "train_head.lr": "0.002",
    "sweep_head.settings": "1", "sweep_head.seeds": "1", "sweep_head.finder_seeds": "1",
}  # fmt: skip
# Each of these moves the loss that the others leave; tests of the library show each by itself.
AS_ADAMW = {
    "training.momentum": "cycled", "training.balance": "weights",
    "training.keep": "best_loss", "train_head.fraction": "0.6", "train_head.batch_size": "8",
    "train_head.weight_decay": "0.5", "train_head.label_smoothing": "0.3", "train_head.warm_up": "0.6",
}  # fmt: skip
AS_SGD = {
    "training.optimizer": "sgd", "training.balance": "sampler", "training.accumulate": "2", "training.clip_norm": "0.2",
    "training.keep": "best_accuracy", "training.early_stop_epochs": "3", "train_head.lr": "0.05",
    "train_head.stored_epochs": "9",
}  # fmt: skip
AVERAGED = {"training.keep": "moving_average", "training.average_decay": "0.8"}
# On a head on stored activations, in one cycle, they have no effect in train_head either.
UNFELT = {
    "training.precision": "bfloat16", "training.keep": "mean_of_cycles", "training.snapshots": "true",
    "train_head.lr_ratio": "7", "train_head.batchnorm": "batch",
}  # fmt: skip
# Of the epochs on pictures, which come after those on stored activations.
AFTERWARDS = {"train_head.cycles": "1", "train_head.cycle_len": "2", "train_head.cycle_mult": "2"}
REFUSED = {
    "training.max_minutes": "5", "train_head.freeze": "early", "train_head.stored_epochs": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def stored(fresh_workplace: Callable[[], Workplace]) -> Iterator[tuple[Recipe, StageRun]]:
    """A recipe, and the activations of pictures that are hard to learn: some labels are wrong, and classes differ in
    size."""
    with fresh_workplace().entered() as folder:
        table = draw_pictures(folder / "pictures")
        lines = table.read_text().splitlines()
        lines[1::4] = [f"{line.split(',')[0]},dot" for line in lines[1::4]]
        table.write_text("\n".join(lines) + "\n")
        recipe = recipe_on(table).model_copy(update={"training": TrainingOptions()})
        yield override_recipe(recipe, ALONE), run_stage_on("precompute", recipe)


def result_alone(stored: tuple[Recipe, StageRun], given: dict[str, str]) -> list[float]:
    metrics = run_stage_on("train_head", override_recipe(stored[0], given), stored[1]).metrics
    return [metrics[kept_name(f"valid/{name}")] for name in ("loss", "accuracy", "macro_f1")]


def result_among_many(stored: tuple[Recipe, StageRun], given: dict[str, str]) -> list[float]:
    with watched():
        done = sweep_head.run(override_recipe(stored[0], given), stored[1].id)
    head = pd.read_csv(f"{mlflow.get_run(done.run_id).info.artifact_uri}/heads.csv").iloc[0]
    return [head[f"valid_{name}"] for name in ("loss", "accuracy", "macro_f1")]


def test_all_keys_that_train_head_trains_by_are_done_or_refused():
    keys = {f"training.{key}" for key in TrainingOptions.model_fields}
    keys |= {f"train_head.{key}" for key in TrainHead.model_fields}
    assert {*AS_ADAMW, *AS_SGD, *AVERAGED, *UNFELT, *AFTERWARDS, *REFUSED} == keys


@pytest.mark.parametrize("given", [AS_ADAMW, AS_SGD, AVERAGED])
def test_the_recipes_own_head_is_that_of_train_head(given, stored):
    assert result_among_many(stored, given) == pytest.approx(result_alone(stored, given), rel=1e-3)


def test_a_line_says_that_cycles_on_pictures_come_after_what_is_compared(stored, capsys):
    found = result_among_many(stored, UNFELT | AFTERWARDS)
    assert "train_head.cycles come after those" in capsys.readouterr().out
    assert found == pytest.approx(result_alone(stored, {}), rel=1e-3)


@pytest.mark.parametrize(("key", "value"), REFUSED.items())
def test_what_cannot_be_done_is_refused_by_its_name(key, value, stored):
    with pytest.raises(UserError, match=key):
        check_stored_heads(override_recipe(stored[0], {key: value}))


def test_an_average_of_where_each_head_would_have_stopped_is_refused(stored):
    both = {"training.keep": "moving_average", "training.early_stop_epochs": "2"}
    with pytest.raises(UserError, match="early_stop_epochs is 2, but sweep_head has no average"):
        check_stored_heads(override_recipe(stored[0], both))
