from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pipeline.activations import compute_activations, open_activations, read_activations, store_parts
from pipeline.augment import Augmentation
from pipeline.body import build_body
from pipeline.cut import cut_network
from pipeline.network import Network
from pipeline.store import content_key
from pipeline.tune import Split, activation_batches
from pipeline.views import FILE, PlainAndViews, open_views

torch.set_num_threads(1)  # tensors this small are slower on two threads

CPU = torch.device("cpu")
HOW = Augmentation("all", 20, 1.2, 0.7, 0.3, 1.0)
TRAIN, VALID = np.array([0, 2, 3, 5, 8, 9, 10]), np.array([1, 4, 6, 7])
TARGETS = np.arange(11) % 3
VIEWS = 2


def network() -> Network:
    torch.manual_seed(0)
    made = Network(build_body("test_resnet", 32), 3, 8, 0.5)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    return made


def pictures() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


def parts() -> dict[str, object]:
    return store_parts([str(row) for row in range(11)], 32, "crop", False, "test_resnet", "random:0", "float32")


def plain_store() -> Path:
    return open_activations(network(), pictures(), parts(), 4, CPU, "float32")


def views_store(views: int = VIEWS, how: Augmentation = HOW, seed: int = 0) -> Path:
    return open_views(network(), pictures(), TRAIN, views, how, parts(), 4, CPU, "float32", seed)


def is_in(row: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(rows - row).max(axis=-1) < 1e-4).any())


def test_every_view_of_every_training_picture_is_a_row_of_its_own_unlike_any_plain_one() -> None:
    plain = compute_activations(network(), pictures(), np.arange(11), CPU)
    views = np.load(views_store() / FILE)
    assert views.shape == (VIEWS, len(TRAIN), plain.shape[1])
    rows = views.reshape(-1, plain.shape[1])
    assert not any(is_in(row, plain) for row in rows)
    assert all(np.abs(row - other).max() > 1e-4 for place, row in enumerate(rows) for other in rows[:place])


def test_without_any_variation_the_views_are_the_plain_rows_of_the_same_pictures() -> None:
    still = Augmentation("none", 0, 1.0, 1.0, 0, 1.0)
    plain = compute_activations(network(), pictures(), np.arange(11), CPU)
    for view in np.load(views_store(how=still) / FILE):
        np.testing.assert_allclose(view, plain[TRAIN], rtol=1e-3, atol=1e-4)


def test_an_epoch_of_training_has_each_picture_as_it_is_and_in_every_view_with_its_own_target() -> None:
    stored, folder = read_activations(plain_store()), views_store()
    views = np.load(folder / FILE)
    train, _ = activation_batches(stored, Split(TRAIN, VALID, TARGETS), 7, CPU, 0, folder)
    seen = [
        (row, int(target)) for inputs, targets in train.epoch(0) for row, target in zip(inputs, targets, strict=True)
    ]
    assert len(seen) == (VIEWS + 1) * len(TRAIN)
    for place, row in enumerate(TRAIN):
        for expected in (stored[row], *views[:, place]):
            targets = [target for found, target in seen if np.array_equal(found.numpy(), expected)]
            assert targets == [TARGETS[row]]


@pytest.mark.parametrize("chosen", [TRAIN, TRAIN[[1, 4]]], ids=["all", "a part"])
def test_validation_never_sees_an_augmented_row_nor_training_one_of_a_picture_left_out(
    chosen: npt.NDArray[np.int64],
) -> None:
    stored, folder = read_activations(plain_store()), views_store()
    train, valid = activation_batches(stored, Split(chosen, VALID, TARGETS), 2, CPU, 0, folder)
    seen = np.concatenate([inputs.numpy() for inputs, _ in valid.epoch(0)])
    assert np.array_equal(seen, stored[VALID])
    allowed = np.concatenate([stored[chosen], *np.load(folder / FILE)[:, np.isin(TRAIN, chosen)]])
    trained = np.concatenate([inputs.numpy() for inputs, _ in train.epoch(0)])
    assert all((allowed == row).all(axis=1).any() for row in trained)


def test_views_are_never_made_of_what_is_validated_on() -> None:
    both = PlainAndViews(read_activations(plain_store()), views_store())
    assert both.rows.tolist() == TRAIN.tolist()
    assert both.shape == (11 + VIEWS * len(TRAIN), both.plain.shape[1])


def test_the_plain_store_stays_what_it_is_and_cannot_be_opened_as_views_nor_views_as_plain() -> None:
    before = content_key(parts())
    plain, varied = plain_store(), views_store()
    assert plain.parent.name == "activations"
    assert varied.parent.name == "views"
    assert plain.name == before
    with pytest.raises(FileNotFoundError):
        read_activations(varied)
    with pytest.raises(FileNotFoundError):
        PlainAndViews(read_activations(plain), plain)


def test_whatever_could_change_the_views_makes_another_store() -> None:
    made = {views_store(), views_store(views=3), views_store(how=replace(HOW, crop=0.6)), views_store(seed=1)}
    assert len(made) == 4
    assert views_store() in made


def test_views_repeat_bit_for_bit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.load(views_store() / FILE)
    torch.rand(5)
    monkeypatch.setenv("THAW_CACHE", str(cache / "another"))
    assert np.array_equal(np.load(views_store() / FILE), first)


def test_views_are_stored_and_trained_on_in_front_of_the_late_group_too() -> None:
    cut = network()
    halves, made_from = cut_network(cut, "late", 32), parts() | {"cut": "late"}
    stored = read_activations(open_activations(cut, pictures(), made_from, 4, CPU, "float32", halves))
    folder = open_views(cut, pictures(), TRAIN, VIEWS, HOW, made_from, 4, CPU, "float32", 0, halves)
    views = np.load(folder / FILE)
    assert views.shape == (VIEWS, len(TRAIN), *halves.shape)
    assert folder != views_store()
    train, valid = activation_batches(stored, Split(TRAIN, VALID, TARGETS), 7, CPU, 0, folder)
    trained = np.concatenate([inputs.numpy() for inputs, _ in train.epoch(0)])
    wanted = np.concatenate([stored[TRAIN], *views])
    assert sorted(row.tobytes() for row in trained) == sorted(row.tobytes() for row in wanted)
    assert np.array_equal(np.concatenate([inputs.numpy() for inputs, _ in valid.epoch(0)]), stored[VALID])


def test_every_view_of_a_picture_weighs_as_much_as_the_picture() -> None:
    stored, folder = read_activations(plain_store()), views_store()
    weights = np.arange(1, 12, dtype=np.float32)
    train, valid = activation_batches(stored, Split(TRAIN, VALID, np.arange(11), weights), 7, CPU, 0, folder)
    for _, targets, found in train.weighted_epoch(0):
        assert found is not None
        assert found.tolist() == (targets + 1).tolist()
    assert valid.weights is None
