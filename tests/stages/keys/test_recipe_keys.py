"""For every key of the recipe, where it arrives. A key without an entry here fails the first test."""

import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.recipe.schema import Recipe, flatten
from tests.stages.chains import StageRun
from tests.stages.keys import test_sweep_keys


def only(values: Any) -> Any:
    """The one value that all of these are."""
    (value,) = set(values)
    return value


def steps_taken(name: str, epochs: int, batches: int) -> Callable[[Any], bool]:
    """The stage took so many steps, in so many epochs of so many batches."""
    return lambda chain: len(chain[name].did.steps) == epochs * batches


def ratio(name: str, number: float) -> Callable[[Any], bool]:
    def holds(chain: Any) -> bool:
        step = chain[name].did.steps[0].rates
        return bool(np.isclose(step["head"], number * step["late"]))

    return holds


def varied(key: str, value: object) -> Callable[[Any], bool]:
    return lambda chain: only(getattr(read.augmentation, key) for read in chain["fine_tune"].did.training) == value


def trained(name: str, of_step: Callable[[Any], Any], value: object) -> Callable[[Any], bool]:
    return lambda chain: only(of_step(step) for step in chain[name].did.steps) == value


def batch_size(name: str, value: int) -> Callable[[Any], bool]:
    return lambda chain: only(read.batch_size for read in chain[name].did.training) == value


def starts_low(name: str, top: float) -> Callable[[Any], bool]:
    return lambda chain: np.isclose(chain[name].did.rates()[0], top / 25)


def rows_per_class(name: str, value: int) -> Callable[[Any], bool]:
    return lambda chain: only(len(read.rows) for read in chain[name].did.training) == 3 * value


def checkpoint(run: StageRun) -> dict[str, Any]:
    return json.loads((run.files / "checkpoint" / "checkpoint.json").read_text())


def decay(name: str, value: float) -> Callable[[Any], bool]:
    return trained(name, lambda step: only(step.decays.values()), value)


def smoothing(name: str, value: float) -> Callable[[Any], bool]:
    return trained(name, lambda step: step.label_smoothing, value)


# What is seen of the key in the `chain`, whose recipe is that of `recipe_on`.
ARRIVES: dict[str, Callable[[Any], bool]] = {
    "seed": lambda chain: only(read.seed for read in chain["fine_tune"].did.training) == 3,
    "data.source": lambda chain: chain.manifest.root.name == "pictures",
    "data.valid_fraction": lambda chain: len(chain.rows("valid")) == 3 * 5,
    "data.test_fraction": lambda chain: len(chain.rows("test")) == 3 * 7,
    "data.fit": lambda chain: checkpoint(chain["precompute"])["fit"] == "squish",
    "data.range": lambda chain: checkpoint(chain["resize"])["ranges"] == {"integer": [0, 4095], "float": [0, 4095]},
    "model.backbone": lambda chain: checkpoint(chain["precompute"])["backbone"] == "test_resnet",
    "model.weights": lambda chain: chain["precompute"].run.data.tags["thaw.weights"] == "random:3",
    "head.hidden": lambda chain: chain["train_head"].network()["head.2.weight"].shape == (24, 192),
    "head.dropout": lambda chain: checkpoint(chain["train_head"])["dropout"] == 0.3,
    "augment.flip": varied("flip", "all"),
    "augment.rotate_degrees": varied("rotate_degrees", 10.0),
    "augment.zoom": varied("zoom", 1.15),
    "augment.crop": varied("crop", 0.9),
    "augment.lighting": varied("lighting", 0.15),
    "augment.strength": varied("rotate_degrees", 20.0 * 0.5),
    "augment.probability": varied("probability", 0.6),
    "precompute.image_px": lambda chain: checkpoint(chain["precompute"])["image_px"] == 32,
    "precompute.dtype": lambda chain: np.load(chain["precompute"].files / "activations/activations.npy").dtype == "f4",
    "lr_find.iterations": lambda chain: len(chain["lr_find"].did.steps) in range(20, 31),
    "lr_find.start_lr": lambda chain: np.isclose(chain["lr_find"].did.rates()[0], 1e-5),
    "lr_find.end_lr": lambda chain: np.isclose(chain["lr_find"].did.rates()[1], 1e-5 * (2.0 / 1e-5) ** (1 / 29)),
    "lr_find.suggestion": lambda chain: chain["lr_find"].metrics["suggestion/lr"]
    == chain["lr_find"].metrics["suggestion/steep"],
    "lr_find.suggestion_unfrozen": lambda chain: chain["lr_find_unfrozen"].metrics["suggestion/lr"]
    == chain["lr_find_unfrozen"].metrics["suggestion/minimum"],
    "training.keep": lambda chain: checkpoint(chain["train_head"])["kept_epochs"] == [2, 4, 8]
    and checkpoint(chain["fine_tune"])["kept_epochs"] == [8 + 2, 8 + 8, 8 + 26],
    "train_head.fraction": rows_per_class("train_head", 10),
    "train_head.batch_size": batch_size("train_head", 6),
    "train_head.lr": lambda chain: np.isclose(max(chain["train_head"].did.rates()), 0.004),
    "train_head.weight_decay": decay("train_head", 0.04),
    "train_head.label_smoothing": smoothing("train_head", 0.12),
    "train_head.stored_epochs": lambda chain: [len(step.shape) for step in chain["train_head"].did.steps].count(2)
    == 2 * 5,
    "train_head.cycles": steps_taken("train_head", 2 + 2 + 4, 5),
    "train_head.cycle_len": lambda chain: np.isclose(chain["train_head"].did.rates()[2 * 5 + 2 * 5], 0.004),
    "train_head.cycle_mult": steps_taken("train_head", 2 + 2 + 4, 5),
    "train_head.warm_up": starts_low("train_head", 0.004),
    "fine_tune.fraction": rows_per_class("fine_tune", 4),
    "fine_tune.batch_size": batch_size("fine_tune", 5),
    "fine_tune.lr": lambda chain: np.isclose(max(chain["fine_tune"].did.rates()), 0.002),
    "fine_tune.lr_ratio": ratio("fine_tune", 6),
    "fine_tune.weight_decay": decay("fine_tune", 0.06),
    "fine_tune.label_smoothing": smoothing("fine_tune", 0.15),
    "fine_tune.cycles": steps_taken("fine_tune", 2 + 6 + 18, 2),
    "fine_tune.cycle_len": lambda chain: np.isclose(chain["fine_tune"].did.rates()[2 * 2], 0.002),
    "fine_tune.cycle_mult": steps_taken("fine_tune", 2 + 6 + 18, 2),
    "fine_tune.warm_up": starts_low("fine_tune", 0.002),
    "resize.image_px": trained("resize", lambda step: step.shape[-1], 40),
    "resize.fraction": rows_per_class("resize", 11),
    "resize.batch_size": batch_size("resize", 4),
    "resize.lr_ratio": ratio("resize", 2),
    "resize.weight_decay": decay("resize", 0.07),
    "resize.label_smoothing": smoothing("resize", 0.2),
    "resize.cycles": steps_taken("resize", 1 + 3, 8),
    "resize.cycle_len": lambda chain: np.isclose(chain["resize"].did.rates()[8], 0.002),
    "resize.cycle_mult": steps_taken("resize", 1 + 3, 8),
    "resize.warm_up": starts_low("resize", 0.002),
    "evaluate.batch_size": lambda chain: only(one.batch_size for one in chain["evaluate"].did.predictions) == 7,
    "evaluate.tta_views": lambda chain: [len(one.views) for one in chain["evaluate"].did.predictions
                                         if one.views is not None] == [3 - 1],  # the first is the plain one
    "evaluate.top_losses": lambda chain: shown_below(chain["evaluate"], "Highest losses") == 5,
    "evaluate.positive_class": lambda chain: "flagging as cross" in (chain["evaluate"].files / "report.md").read_text(),
    "evaluate.duplicate_similarity": lambda chain: 0.5
    <= pd.read_csv(chain["evaluate"].files / "near_duplicates.csv")["similarity"].min() < 0.97,
    "evaluate.cross_validation_folds": lambda chain: len({read.seed for read in chain["evaluate"].did.training}) == 3,
    "evaluate.neighbours": lambda chain: len(pd.read_csv(chain["evaluate"].files / "neighbours" / "pictures.csv")) == 7,
    "evaluate.onnx": lambda chain: not (chain["evaluate"].files / "onnx").exists(),
    "evaluate.champion_by": lambda chain: "test/macro_f1" in chain["evaluate"].run.data.tags["thaw.champion"],
    "evaluate.register_as": lambda chain: chain["evaluate"].run.data.tags["thaw.model"] == "models:/wired/1",
}  # fmt: skip

# Keys that other tests show to arrive: the module of the test, its name, and the keys.
SHOWN_BY: dict[str, dict[str, list[str]]] = {
    "tests.stages.keys.test_picture_keys": {
        "test_the_device_of_the_recipe_is_asked_for": ["device"],
        "test_the_split_follows_from_its_own_seed": ["data.split_seed"],
        "test_files_of_other_endings_are_set_aside": ["data.extensions"],
        "test_too_many_bad_pictures_stop_the_run": ["data.max_bad"],
        "test_copies_in_two_splits_stop_the_run_if_asked_to": ["data.duplicates"],
        "test_a_decoder_that_is_not_here_is_refused": ["data.decoder"],
        "test_labels_are_corrected_and_stores_are_found_again": ["data.corrections"],
        "test_pixels_are_not_stored_beyond_what_the_recipe_allows": ["data.max_store_gib"],
        "test_pixels_are_not_logged_beyond_what_the_recipe_allows": ["data.max_logged_gib"],
        "test_precompute_computes_by_its_own_batch_size": ["precompute.batch_size"],
        "test_the_balance_of_the_recipe_arrives_in_the_split": ["training.balance"],
        "test_mixing_arrives_in_the_batches_of_training": [
            "augment.perspective", "augment.erase", "augment.trivial", "augment.mixup", "augment.cutmix",
        ],
    },
    "tests.pipeline.runs.test_recipe_pictures": {
        "test_pictures_at_addresses_are_fetched_by_the_recipe": ["data.max_download_gib", "data.recheck_hours"],
    },
    "tests.pipeline.runs.test_runner": {
        "test_a_stage_that_is_never_to_be_reused_runs_again": ["reuse"],
        "test_a_stage_works_within_a_block_of_its_device_if_the_result_is_to_be_the_same_each_time": ["deterministic"],
    },
    "tests.stages.method.test_soft_labels_in_training": {
        "test_soft_labels_are_asked_of_the_source_before_the_first_stage_and_by_it": ["data.soft_labels"],
        "test_uncertain_pictures_weigh_less_in_each_training_step": ["data.uncertain_weight"],
    },
    "tests.stages.method.test_stored_activations": {
        "test_views_are_rows_of_their_own_beside_those_of_the_pictures_as_they_are": ["precompute.views"],
    },
    "tests.stages.method.test_frozen_weights": {
        "test_while_the_late_group_is_trained_on_stored_feature_maps_the_early_one_stays_frozen": [
            "precompute.cut", "train_head.freeze",
        ],
        "test_resizing_leaves_the_group_that_the_recipe_freezes_as_it_is": ["resize.freeze"],
        "test_batchnorm_learns_new_statistics_where_the_recipe_says_batch_but_for_what_is_frozen": [
            "train_head.batchnorm", "fine_tune.batchnorm", "resize.batchnorm",
        ],
    },
    "tests.stages.method.test_learning_rates": {
        "test_the_late_group_trains_on_stored_feature_maps_at_its_ratio_of_the_heads_rate": ["train_head.lr_ratio"],
        "test_rates_that_are_listed_are_those_of_the_groups": ["resize.lr"],
    },
    "tests.stages.method.test_training_steps": {
        "test_a_network_is_compiled_once_for_each_size_that_it_trains_on_pictures_of_if_the_recipe_says_so": [
            "compile",
        ],
        "test_what_all_training_stages_share_arrives_in_each_step_of_each": [
            "training.optimizer", "training.momentum", "training.precision", "training.clip_norm",
            "training.accumulate", "training.average_decay", "training.early_stop_epochs", "training.max_minutes",
        ],
    },
    "tests.stages.method.test_image_sizes": {
        "test_each_step_is_a_run_on_the_one_before_it_and_those_without_cycles_are_left_out": ["stages"],
        "test_the_body_is_thawed_group_by_group_and_its_blocks_are_skipped_if_asked_to": [
            "fine_tune.gradual_epochs", "fine_tune.drop_path", "resize.gradual_epochs", "resize.drop_path",
        ],
    },
    "tests.stages.test_ensembles": {
        "test_each_network_has_its_own_runs_in_one_of_its_seed_on_the_same_activations_and_split": ["seeds"],
        "test_the_networks_that_cycles_ended_with_stay_with_the_stage": ["training.snapshots"],
    },
}  # fmt: skip


def shown_below(run: StageRun, heading: str) -> int:
    """How many pictures the report shows below a heading."""
    page = (run.files / "report.html").read_text()
    return page.partition(f">{heading}<")[2].partition("<h3")[0].count("<figure>")


def test_every_key_of_the_recipe_is_shown_to_arrive():
    elsewhere = [key for tests in SHOWN_BY.values() for keys in tests.values() for key in keys]
    shown = [*ARRIVES, *elsewhere, *test_sweep_keys.ARRIVES, *test_sweep_keys.HEADS_ARRIVE]
    assert sorted(shown) == sorted(flatten(Recipe()))


@pytest.mark.parametrize("key", ARRIVES)
def test_a_key_arrives_in_the_stage_that_it_is_for(key, chain):
    assert flatten(chain.recipe)[key] != flatten(Recipe())[key]
    assert ARRIVES[key](chain)


@pytest.mark.parametrize("module", SHOWN_BY)
def test_the_tests_that_show_the_other_keys_exist(module):
    there = importlib.import_module(module)
    assert not [name for name in SHOWN_BY[module] if not callable(getattr(there, name, None))]
