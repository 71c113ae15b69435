import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.augment import Augmentation
from pipeline.body import build_body
from pipeline.fit import fit
from pipeline.layer_groups import Frozen, layer_groups
from pipeline.manifest import COLUMNS, Manifest, build_manifest
from pipeline.network import Network
from pipeline.pixels import open_pixels
from pipeline.sources import list_source
from pipeline.tune import Split, activation_batches, head_optimizer, pixel_batches, thaw, thaw_above, training_split

torch.set_num_threads(1)  # tensors this small are slower on two threads

CPU = torch.device("cpu")
RATES = {"early": 0.001, "late": 0.01, "head": 0.1}
HOW = Augmentation(flip="all", rotate_degrees=20, zoom=1.2, crop=0.7, lighting=0.3, probability=1.0)
FRACTIONS = [0.05, 0.1, 0.25, 0.5, 0.75, 1.0]


def manifest(count: int = 200) -> Manifest:
    """Every fourth picture is a dog; out of ten pictures two are for validation and two for the test."""
    numbers = np.arange(count)
    splits = np.array(["train"] * 6 + ["valid"] * 2 + ["test"] * 2)[np.random.default_rng(0).permutation(numbers) % 10]
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in numbers],
            "label": np.where(numbers % 4 == 0, "dog", "cat"),
            "split": splits,
            "hash": [f"{number:064x}" for number in numbers],
            "width_px": 32,
            "height_px": 32,
            "mode": "RGB",
            "weight": 1.0,
        },
        columns=COLUMNS,
    )
    return Manifest("pets", Path("pets"), ["cat", "dog"], table, pd.DataFrame(columns=["path", "reason"]))


def split_of(known: Manifest, rows: npt.NDArray[np.int64]) -> set[str]:
    return set(known.table["split"].iloc[rows])


def pictures(count: int = 12) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def small_split(train: int = 8, valid: int = 4) -> Split:
    return Split(np.arange(train), np.arange(train, train + valid), np.arange(train + valid) % 2)


def network(backbone: str = "test_resnet") -> Network:
    return Network(build_body(backbone, 32), 3, 8, 0.5)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_test_split_is_in_neither_and_each_split_stays_with_its_own(fraction: float) -> None:
    known = manifest()
    split = training_split(known, fraction, 0)
    assert split_of(known, split.train) == {"train"}
    assert split_of(known, split.valid) == {"valid"}


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_the_validation_split_is_never_reduced(fraction: float) -> None:
    known = manifest()
    assert training_split(known, fraction, 0).valid.tolist() == known.rows("valid").tolist()


def test_the_whole_training_split_is_all_of_it() -> None:
    known = manifest()
    assert training_split(known, 1.0, 0).train.tolist() == known.rows("train").tolist()


def test_a_smaller_fraction_lies_within_every_larger_one() -> None:
    chosen = [set(training_split(manifest(), fraction, 0).train.tolist()) for fraction in FRACTIONS]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(chosen))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_fraction_takes_its_share_of_every_class(fraction: float) -> None:
    known = manifest()
    split = training_split(known, fraction, 0)
    all_counts = np.bincount(known.targets[known.rows("train")])
    counts = np.bincount(known.targets[split.train], minlength=2)
    assert counts.tolist() == np.ceil(np.round(all_counts * fraction, 9)).astype(int).tolist()


def test_the_seed_decides_which_part_is_taken() -> None:
    first = training_split(manifest(), 0.25, 0).train.tolist()
    assert training_split(manifest(), 0.25, 0).train.tolist() == first
    assert training_split(manifest(), 0.25, 1).train.tolist() != first


def test_targets_are_those_of_all_rows() -> None:
    known = manifest()
    assert training_split(known, 0.5, 0).targets.tolist() == known.targets.tolist()


def test_weights_are_those_of_all_rows_and_none_where_they_say_nothing_of_the_rows_trained_on() -> None:
    known = manifest()
    assert training_split(known, 1.0, 0).weights is None
    known.table["weight"] = 2.5
    assert training_split(known, 1.0, 0).weights is None
    known.table.loc[known.rows("valid"), "weight"] = 7.0
    assert training_split(known, 1.0, 0).weights is None
    known.table["weight"] = np.arange(1.0, 201.0)
    weights = training_split(known, 0.5, 0).weights
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.tolist() == known.table["weight"].tolist()


def test_the_weights_of_a_table_count_in_training_and_equal_ones_of_any_value_change_no_bit(tmp_path: Path) -> None:
    for number in range(24):
        Image.new("L", (32, 32), 10 * number).save(tmp_path / f"{number}.png")

    def trained(weight: Callable[[int], str]) -> list[float]:
        lines = [f"{number}.png,{number % 2},{'valid' if number > 15 else ''},{weight(number)}" for number in range(24)]
        (tmp_path / "table.csv").write_text("\n".join(["path,label,split,weight", *lines]))
        known = build_manifest(list_source(str(tmp_path / "table.csv"), []), 0.2, 0.0, 0.0, 0)
        split, pixels = training_split(known, 1.0, 0), open_pixels(known, 32, "crop")
        torch.manual_seed(0)
        some = network()
        train, valid = pixel_batches(pixels, split, HOW, 4, CPU, 0)
        records = list(fit(some, thaw(some, "body", {"head": 0.01}, 0.01), train, valid, [2]))
        return [loss for record in records for loss in (record.train_loss, record.valid_loss)]  # type: ignore[union-attr]

    without = trained(lambda number: "")
    assert trained(lambda number: "0.3") == without
    assert trained(lambda number: "0.3" if number < 16 else "8") == without
    uneven = trained(lambda number: "30" if number % 4 else "")
    assert all(one != other for one, other in zip(uneven, without, strict=True))


@pytest.mark.parametrize("kind", ["pixels", "activations"])
def test_training_batches_bring_each_pictures_weight_and_validation_batches_none(kind: str) -> None:
    plain = small_split(16, 8)
    split = replace(plain, targets=np.arange(24), weights=np.arange(24, dtype=np.float32) / 2)
    if kind == "pixels":
        train, valid = pixel_batches(pictures(24), split, HOW, 4, CPU, seed=5)
    else:
        train, valid = activation_batches(np.zeros((24, 3), dtype=np.float16), split, 4, CPU, seed=5)
    seen = [(targets, weights) for _, targets, weights in train.weighted_epoch(0)]
    assert len(seen) == 4
    for targets, weights in seen:
        assert weights is not None
        assert weights.tolist() == (targets / 2).tolist()
    assert [weights for *_, weights in valid.weighted_epoch(0)] == [None] * len(valid)


def test_training_images_are_augmented_and_validation_images_are_not() -> None:
    pixels, split = pictures(), small_split()
    train, valid = pixel_batches(pixels, split, HOW, 4, CPU, seed=0)
    assert train.augmentation == HOW
    assert valid.augmentation is None
    plain = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    seen = torch.cat([images for images, _ in valid.epoch(0)])
    assert torch.equal(seen, plain[8:])
    for image in torch.cat([images for images, _ in train.epoch(0)]):
        assert not any(torch.allclose(image, one, atol=1e-2) for one in plain)


def test_stored_activations_are_never_augmented() -> None:
    stored = np.random.default_rng(0).standard_normal((12, 7)).astype(np.float16)
    for batches in activation_batches(stored, small_split(), 4, CPU, seed=0):
        assert batches.augmentation is None
        for inputs, _ in batches.epoch(0):
            for row in inputs.numpy():
                assert any(np.array_equal(row, one.astype(np.float32)) for one in stored)


def test_training_batches_are_shuffled_by_the_seed_and_validation_batches_are_in_order() -> None:
    stored = np.arange(24, dtype=np.float32).reshape(24, 1)
    split = small_split(16, 8)
    for make in (
        lambda: activation_batches(stored, split, 4, CPU, seed=5),
        lambda: pixel_batches(pictures(24), split, HOW, 4, CPU, seed=5),
    ):
        train, valid = make()
        assert train.seed == 5
        assert valid.seed is None
        assert train.batch_size == 4
        assert train.rows.tolist() == split.train.tolist()
        assert valid.rows.tolist() == split.valid.tolist()
    train, valid = activation_batches(stored, split, 4, CPU, seed=5)
    shuffled = [int(value) for inputs, _ in train.epoch(0) for value in inputs]
    assert sorted(shuffled) == list(range(16))
    assert shuffled != list(range(16))
    assert [int(value) for inputs, _ in valid.epoch(0) for value in inputs] == list(range(16, 24))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(
    ("frozen", "trained"), [("body", {"head"}), ("early", {"late", "head"}), ("none", {"early", "late", "head"})]
)
def test_what_is_thawed_is_what_the_optimizer_holds(backbone: str, frozen: Frozen, trained: set[str]) -> None:
    some = network(backbone)
    optimizer = thaw(some, frozen, RATES, 0.01)
    groups = layer_groups(some)
    expected = {name for group in trained for name in groups[group]}
    assert {name for name, parameter in some.named_parameters() if parameter.requires_grad} == expected
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in some.named_parameters() if name in expected}
    assert {group["layer_group"]: group["lr"] for group in optimizer.param_groups} == {
        group: RATES[group] for group in trained
    }


def test_a_frozen_body_needs_a_rate_for_the_head_alone() -> None:
    optimizer = thaw(network(), "body", {"head": 0.1}, 0.01)
    assert {group["layer_group"] for group in optimizer.param_groups} == {"head"}


def test_thawing_again_thaws_what_was_frozen() -> None:
    some = network()
    thaw(some, "body", RATES, 0.01)
    thaw(some, "none", RATES, 0.01)
    assert all(parameter.requires_grad for parameter in some.parameters())


@pytest.mark.parametrize(("frozen", "trained"), [("body", {"head"}), ("early", {"late", "head"})])
def test_above_a_cut_in_front_of_the_late_group_the_same_is_thawed_as_in_the_whole_network(
    frozen: Frozen, trained: set[str]
) -> None:
    some, groups = network(), layer_groups(network())
    rates = {group: RATES[group] for group in trained}
    above, optimizer = thaw_above(some, "late", 32, frozen, rates, 0.01)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    wanted = {name for group in trained for name in groups[group]}
    assert held == {id(parameter) for name, parameter in some.named_parameters() if name in wanted}
    assert held == {id(parameter) for parameter in above.parameters() if parameter.requires_grad}
    assert {group["layer_group"]: group["lr"] for group in optimizer.param_groups} == rates


def test_above_a_cut_in_front_of_the_head_is_the_head_with_its_own_optimizer() -> None:
    some = network()
    above, optimizer = thaw_above(some, "head", 32, "body", {"head": 0.2}, 0.01)
    assert above is some.head
    own = head_optimizer(some.head, 0.2, 0.01)
    assert optimizer.state_dict()["param_groups"] == own.state_dict()["param_groups"]


def test_nothing_is_trained_on_what_is_stored_above_it() -> None:
    with pytest.raises(AssertionError, match="below the cut"):
        thaw_above(network(), "late", 32, "none", RATES, 0.01)


def test_a_heads_optimizer_holds_the_head_and_nothing_else() -> None:
    some = network()
    optimizer = head_optimizer(some.head, 0.2, 0.01)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in some.head.parameters()}
    assert {(group["layer_group"], group["lr"], group["initial_lr"]) for group in optimizer.param_groups} == {
        ("head", 0.2, 0.2)
    }
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}
