"""Each stage does what the method asks: the rows it reads, how they vary, which weights move, at which rates."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.data.augment import Augmentation
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.layer_groups import layer_groups
from pipeline.models.network import build_head
from stages import fine_tune, lr_find, precompute, resize, train_head
from tests.stages.wiring import PICTURES_PER_CLASS, draw_pictures, recipe_on, run_watched

# Of the recipe, with its strength of 0.5.
AUGMENTED = Augmentation("all", 10.0, 1.15, 0.9, 0.15, 0.6)
GROUPS = ("early", "late", "head")


def cosine(top: float, cycle_epochs: Sequence[int], batches: int, warm_up_steps: int = 0) -> list[float]:
    """The rates of all steps: half a cosine for each cycle, from its top; the first climbs there from a 25th."""
    climb = [
        top * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / warm_up_steps))) for step in range(warm_up_steps)
    ]
    lengths = [epochs * batches for epochs in cycle_epochs]
    lengths[0] -= warm_up_steps
    return climb + [top * 0.5 * (1 + math.cos(math.pi * step / length)) for length in lengths for step in range(length)]


def rows_of(chain, split):
    return set(chain.manifest.rows(split).tolist())


def moved_groups(seen):
    """The layer groups of which a parameter has moved, and whether statistics of the body have."""
    network, _ = load_checkpoint(seen.files / "checkpoint")
    moved = seen.moved()
    groups = {group for group, names in layer_groups(network).items() if moved & set(names)}
    return groups, any("running" in name for name in moved if name.startswith("body."))


def test_pictures_are_split_by_the_fractions_of_the_recipe(chain):
    per_class = {name: len(rows_of(chain, name)) / 3 for name in ("train", "valid", "test")}
    assert per_class == {"train": 12, "valid": 5, "test": 7}  # of 24: 0.2 validate, 0.3 test


def test_precompute_stores_the_frozen_bodys_activations_of_every_plain_picture(chain):
    stored = np.load(chain.precompute.files / "activations" / "activations.npy")
    network, checkpoint = load_checkpoint(chain.precompute.files / "checkpoint")
    pixels = np.load(next(chain.precompute.files.glob("pixels/32/pixels.npy")))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = network.eval().activations(images)
    assert stored.dtype == np.float32
    assert stored.shape == (3 * PICTURES_PER_CLASS, network.width)
    assert (checkpoint.image_px, checkpoint.fit) == (32, "squish")
    np.testing.assert_allclose(stored, expected, atol=1e-5)
    assert not chain.precompute.steps


@pytest.mark.parametrize("name", ["lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize"])
def test_training_stages_train_on_training_rows_validate_on_validation_rows_and_read_no_test_row(chain, name):
    seen = getattr(chain, name)
    assert seen.training
    assert all(set(read.rows) <= rows_of(chain, "train") for read in seen.training)
    assert all(set(read.rows) == rows_of(chain, "valid") for read in seen.validation)
    assert all(read.augmentation is None for read in seen.validation)
    assert bool(seen.validation) == (not name.startswith("lr_find"))


@pytest.mark.parametrize(
    ("name", "per_class"), [("lr_find", 12), ("train_head", 10), ("lr_find_unfrozen", 12), ("fine_tune", 4),
                            ("resize", 11)],
)  # fmt: skip
def test_a_stage_trains_on_its_fraction_of_every_class_rounded_up(chain, name, per_class):
    targets = chain.manifest.targets
    for read in getattr(chain, name).training:
        assert np.bincount(targets[list(read.rows)]).tolist() == [per_class] * 3


@pytest.mark.parametrize(("name", "group"), [("lr_find", "head"), ("lr_find_unfrozen", "head")])
def test_the_finder_raises_the_rate_from_its_start_in_equal_ratios(chain, name, group):
    rates = getattr(chain, name).rates(group)
    growth = (2.0 / 1e-5) ** (1 / 29)
    assert rates[0] == pytest.approx(1e-5)
    assert len(rates) <= 30
    assert [later / rate for rate, later in pairwise(rates)] == pytest.approx([growth] * (len(rates) - 1))


def test_the_unfrozen_finder_gives_each_group_its_ratio_of_the_rate(chain):
    for step in chain.lr_find_unfrozen.steps:
        assert step.rates["head"] == pytest.approx(4 * step.rates["late"]) == pytest.approx(16 * step.rates["early"])


@pytest.mark.parametrize(("name", "rule"), [("lr_find", "steep"), ("lr_find_unfrozen", "minimum")])
def test_the_finder_suggests_by_the_rule_of_the_recipe_and_below_the_lowest_point_of_the_curve(chain, name, rule):
    seen = getattr(chain, name)
    curve = pd.read_csv(seen.files / "curve.csv")
    lowest = curve["lr"][curve["smoothed_loss"].idxmin()]
    assert seen.metrics["suggestion/lr"] == seen.metrics[f"suggestion/{rule}"]
    assert seen.metrics["suggestion/lr"] < lowest


def test_the_finder_on_stored_activations_varies_nothing_and_the_unfrozen_one_augments(chain):
    assert {read.augmentation for read in chain.lr_find.training} == {None}
    assert {read.augmentation for read in chain.lr_find_unfrozen.training} == {AUGMENTED}
    assert len(chain.lr_find.steps[0].shape) == 2
    assert chain.lr_find_unfrozen.steps[0].shape == (8, 3, 32, 32)


def test_the_head_starts_anew_from_the_seed_with_the_shape_of_the_recipe(chain):
    torch.manual_seed(3)
    fresh = build_head(192, 3, 24, 0.3).state_dict()
    assert fresh.keys() == chain.train_head.first_state.keys()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in chain.train_head.first_state.items())
    facts = json.loads((chain.train_head.files / "checkpoint" / "checkpoint.json").read_text())
    assert (facts["hidden"], facts["dropout"]) == (24, 0.3)


def test_the_head_trains_on_stored_activations_first_and_then_with_augmentation_while_the_body_stays_as_it_is(chain):
    reads, steps = chain.train_head.training, chain.train_head.steps
    assert [read.augmentation for read in reads] == [None] * 2 + [AUGMENTED] * 6
    assert [len(step.shape) for step in steps] == [2] * 10 + [4] * 30
    assert {name for name in chain.train_head.moved() if name.startswith("body.")} == set()
    assert moved_groups(chain.train_head) == ({"head"}, False)


def test_the_heads_rates_fall_along_a_cosine_in_each_phase_and_cycle(chain):
    assert chain.train_head.rates() == pytest.approx(cosine(0.004, [2], 5, 2) + cosine(0.004, [2, 4], 5, 2))


@pytest.mark.parametrize("name", ["fine_tune", "resize"])
def test_once_the_head_is_trained_its_batchnorm_learns_no_statistics_of_augmented_pictures(chain, name):
    assert [one for one in chain.train_head.moved() if "running" in one]
    assert not [one for one in getattr(chain, name).moved() if "running" in one]


def test_fine_tuning_moves_every_layer_group_and_keeps_the_bodys_statistics(chain):
    assert moved_groups(chain.fine_tune) == (set(GROUPS), False)
    assert not any(step.body_learns_statistics for step in chain.fine_tune.steps)


def test_fine_tuning_augments_and_restarts_each_groups_rate_at_every_cycle(chain):
    assert {read.augmentation for read in chain.fine_tune.training} == {AUGMENTED}
    for place, group in enumerate(GROUPS):
        top = 0.002 / 6 ** (2 - place)
        assert chain.fine_tune.rates(group) == pytest.approx(cosine(top, [2, 6, 18], 2, 2))  # 12 pictures, batches of 5
    steps = pd.read_csv(chain.fine_tune.files / "steps.csv")
    assert steps["head"].tolist() == pytest.approx(chain.fine_tune.rates())


def test_resizing_goes_on_at_the_larger_size_at_the_upstream_rate_with_the_early_group_frozen(chain):
    assert {step.shape for step in chain.resize.steps} == {(4, 3, 40, 40)}
    assert moved_groups(chain.resize) == ({"late", "head"}, False)
    assert chain.resize.rates() == pytest.approx(cosine(0.002, [1, 3], 8, 2))  # 33 pictures, batches of 4
    assert chain.resize.rates("late") == pytest.approx(cosine(0.001, [1, 3], 8, 2))
    assert {read.augmentation for read in chain.resize.training} == {AUGMENTED}
    assert json.loads((chain.resize.files / "checkpoint" / "checkpoint.json").read_text())["image_px"] == 40


@pytest.mark.parametrize(
    ("name", "batch_size", "decay", "smoothing"),
    [
        ("lr_find", 8, 0.03, 0.0), ("train_head", 6, 0.04, 0.12), ("lr_find_unfrozen", 8, 0.03, 0.0),
        ("fine_tune", 5, 0.06, 0.15), ("resize", 4, 0.07, 0.2),
    ],
)  # fmt: skip
def test_a_stage_trains_by_its_own_batch_size_decay_and_smoothing(chain, name, batch_size, decay, smoothing):
    seen = getattr(chain, name)
    assert {read.batch_size for read in seen.training} == {batch_size}
    assert {step.label_smoothing for step in seen.steps} == {smoothing}
    assert {value for step in seen.steps for value in step.decays.values()} == {decay}


@pytest.mark.parametrize("name", ["train_head", "fine_tune", "resize"])
def test_what_all_training_stages_share_arrives_in_each_step_of_each(chain, name):
    steps = getattr(chain, name).steps
    assert {step.optimizer for step in steps} == {("SGD", True)}
    assert all(step.options == chain.recipe.training for step in steps)
    assert {step.optimizer for step in chain.lr_find.steps + chain.lr_find_unfrozen.steps} == {("SGD", True)}


def test_epochs_differ_in_their_order_by_the_seed_of_the_recipe(chain):
    for name in ("lr_find", "train_head", "fine_tune", "resize"):
        assert {read.seed for read in getattr(chain, name).training} == {3}


def test_evaluate_predicts_every_split_once_and_the_test_split_again_with_the_fixed_views(chain):
    plain = [one["rows"] for one in chain.evaluate.predicted if one["views"] is None]
    assert [set(rows) for rows in plain] == [rows_of(chain, name) for name in ("valid", "train", "test")]
    ((varied),) = [one for one in chain.evaluate.predicted if one["views"] is not None]
    assert set(varied["rows"]) == rows_of(chain, "test")
    assert varied["views"].shape == (2, 2, 3), "the first of three views is the picture as it is"
    table = pd.read_csv(chain.evaluate.files / "predictions.csv")
    assert table.groupby("split")["tta_loss"].count().to_dict() == {"test": 21, "train": 0, "valid": 0}
    assert not np.allclose(table["tta_loss"].dropna(), table.loc[table["split"] == "test", "loss"])


def test_over_fitting_is_diagnosed_from_the_training_loss_and_the_validation_loss_in_this_order(chain):
    losses = pd.read_csv(chain.evaluate.files / "predictions.csv").groupby("split")["loss"].mean()
    assert chain.evaluate.diagnosed == [(pytest.approx(losses["train"]), pytest.approx(losses["valid"]))]
    assert chain.evaluate.metrics["train/plain_loss"] == pytest.approx(losses["train"])
    assert chain.evaluate.metrics["valid/loss"] == pytest.approx(losses["valid"])


@pytest.fixture(scope="module")
def late(own_server):
    """Activations stored in front of the late group, with views and weights, and the stages after them."""
    with own_server() as folder:
        recipe = recipe_on(
            draw_pictures(folder / "pictures", weights=True), compile=True, precompute__cut="late",
            precompute__views=2,
            train_head__freeze="early", train_head__cycles=1, train_head__batchnorm="batch",
            fine_tune__batchnorm="batch",
            fine_tune__lr="auto", fine_tune__cycles=1, lr_find__batchnorm="fixed", resize__freeze="none",
            resize__lr=[1e-4, 2e-4, 4e-4], resize__batchnorm="batch", resize__cycles=1,
        )  # fmt: skip
        seen = {"precompute": run_watched(precompute.run, recipe)}
        for name, run, upstream in (
            ("train_head", train_head.run, "precompute"), ("lr_find", lr_find.run, "train_head"),
            ("fine_tune", fine_tune.run, "lr_find"), ("resize", resize.run, "fine_tune"),
        ):  # fmt: skip
            seen[name] = run_watched(run, recipe, seen[upstream])
        for name, upstream in (("train_head", "precompute"), ("fine_tune", "train_head"), ("resize", "fine_tune")):
            seen[name].before = seen[upstream].network()
        return seen


def test_the_late_group_trains_on_stored_feature_maps_and_their_views_while_the_early_one_stays_frozen(late):
    first = late["train_head"].training[0]
    assert len(first.rows) == 3 * 30  # each of 30 training pictures as it is, and its two views
    assert first.augmentation is None
    assert len(late["train_head"].steps[0].shape) == 4
    assert moved_groups(late["train_head"])[0] == {"late", "head"}
    for step in late["train_head"].steps:
        assert step.rates["head"] == pytest.approx(5 * step.rates["late"])


def test_a_network_is_compiled_once_for_each_size_that_it_trains_on_pictures_of_if_the_recipe_says_so(late, chain):
    counts = {name: len(late[name].compiled) for name in ("train_head", "lr_find", "fine_tune", "resize")}
    assert counts == {"train_head": 1, "lr_find": 0, "fine_tune": 1, "resize": 1}
    assert not chain.fine_tune.compiled


def test_the_weights_of_a_table_count_in_every_training_step(late):
    for name in ("train_head", "lr_find", "fine_tune", "resize"):
        weights = {weight for step in late[name].steps for weight in step.weights}
        assert weights == {1.0, 2.0, 3.0}


@pytest.mark.parametrize(("name", "learns"), [("train_head", True), ("lr_find", False), ("fine_tune", True),
                                              ("resize", True)])  # fmt: skip
def test_batchnorm_learns_new_statistics_where_the_recipe_says_batch(late, name, learns):
    assert any(step.body_learns_statistics for step in late[name].steps) == learns
    if name != "lr_find":
        assert moved_groups(late[name])[1] == learns


def test_an_automatic_rate_is_what_the_finder_suggested(late):
    top = late["lr_find"].metrics["suggestion/lr"]
    assert late["fine_tune"].rates() == pytest.approx(cosine(top, [2], 2, 2))


def test_rates_that_are_listed_are_those_of_the_groups(late):
    top = {group: max(late["resize"].rates(group)) for group in GROUPS}
    assert top == pytest.approx({"early": 1e-4, "late": 2e-4, "head": 4e-4})
    assert moved_groups(late["resize"])[0] == set(GROUPS)
