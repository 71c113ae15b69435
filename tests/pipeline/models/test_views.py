from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from pipeline.cache.hashing import content_key
from pipeline.data.augment import Augmentation
from pipeline.data.loader import Split
from pipeline.models.activations import (
    VIEWS_FILE,
    PlainAndViews,
    StoreSettings,
    activation_batches,
    activation_key_parts,
    open_activations,
    read_activations,
)
from pipeline.models.body import build_body
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.cut import cut_network
from pipeline.models.engine import stored_pass
from pipeline.models.network import Network
from pipeline.models.views import Views, open_views

CPU = torch.device("cpu")
HOW = Augmentation("all", 20, 1.2, 0.7, 0.3, 1.0)
TRAIN, VALID = np.array([0, 2, 3, 5, 8, 9, 10]), np.array([1, 4, 6, 7])
TARGETS = np.arange(11) % 3
VIEWS = 2
SETTINGS = StoreSettings(4, "float32", CPU)


def network() -> Network:
    torch.manual_seed(0)
    made = Network(build_body("test_resnet", 32), 3, 8, 0.5)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    return made


def pictures() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


def key_parts() -> dict[str, object]:
    checkpoint = Checkpoint("test_resnet", ["a", "b", "c"], 8, 0.5, 32, "crop", False)
    return activation_key_parts([str(row) for row in range(11)], checkpoint, "random:0", "float32")


def plain_store() -> Path:
    return open_activations(network(), pictures(), key_parts(), SETTINGS)


def views_store(views: int = VIEWS, augmentation: Augmentation = HOW, seed: int = 0) -> Path:
    return open_views(network(), pictures(), Views(TRAIN, views, augmentation, seed), key_parts(), SETTINGS)


def is_in(row: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(rows - row).max(axis=-1) < 1e-4).any())


def test_every_view_of_every_training_picture_is_a_row_of_its_own_unlike_any_plain_one() -> None:
    plain = read_activations(plain_store())
    views = np.load(views_store() / VIEWS_FILE)
    assert views.shape == (VIEWS, len(TRAIN), plain.shape[1])
    rows = views.reshape(-1, plain.shape[1])
    assert not any(is_in(row, plain) for row in rows)
    assert all(np.abs(row - other).max() > 1e-4 for index, row in enumerate(rows) for other in rows[:index])


def test_without_any_variation_the_views_are_the_plain_rows_of_the_same_pictures() -> None:
    still = Augmentation("none", 0, 1.0, 1.0, 0, 1.0)
    plain = read_activations(plain_store())
    for view in np.load(views_store(augmentation=still) / VIEWS_FILE):
        np.testing.assert_allclose(view, plain[TRAIN], rtol=1e-3, atol=1e-4)


def test_an_epoch_of_training_has_each_picture_as_it_is_and_in_every_view_with_its_own_target() -> None:
    stored, folder = read_activations(plain_store()), views_store()
    views = np.load(folder / VIEWS_FILE)
    train, _ = activation_batches(stored, Split(TRAIN, VALID, TARGETS), 7, CPU, 0, folder)
    seen = [
        (row, int(target)) for inputs, targets in train.epoch(0) for row, target in zip(inputs, targets, strict=True)
    ]
    assert len(seen) == (VIEWS + 1) * len(TRAIN)
    for index, row in enumerate(TRAIN):
        for expected in (stored[row], *views[:, index]):
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
    allowed = np.concatenate([stored[chosen], *np.load(folder / VIEWS_FILE)[:, np.isin(TRAIN, chosen)]])
    trained = np.concatenate([inputs.numpy() for inputs, _ in train.epoch(0)])
    assert all((allowed == row).all(axis=1).any() for row in trained)


def test_views_are_never_made_of_validation_pictures() -> None:
    both = PlainAndViews(read_activations(plain_store()), views_store())
    assert both.rows.tolist() == TRAIN.tolist()
    assert both.shape == (11 + VIEWS * len(TRAIN), both.plain.shape[1])


def test_the_plain_store_stays_what_it_is_and_cannot_be_opened_as_views_nor_views_as_plain() -> None:
    before = content_key(key_parts())
    plain, varied = plain_store(), views_store()
    assert plain.parent.name == "activations"
    assert varied.parent.name == "views"
    assert plain.name == before
    with pytest.raises(FileNotFoundError):
        read_activations(varied)
    with pytest.raises(FileNotFoundError):
        PlainAndViews(read_activations(plain), plain)


def test_everything_that_could_change_the_views_makes_another_store() -> None:
    made = {views_store(), views_store(views=3), views_store(augmentation=replace(HOW, crop=0.6)), views_store(seed=1)}
    assert len(made) == 4
    assert views_store() in made


def test_views_repeat_bit_for_bit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.load(views_store() / VIEWS_FILE)
    torch.rand(5)
    monkeypatch.setenv("THAW_CACHE", str(cache / "another"))
    assert np.array_equal(np.load(views_store() / VIEWS_FILE), first)


def test_views_are_the_same_where_several_batches_are_computed_at_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = np.load(views_store() / VIEWS_FILE)
    monkeypatch.setenv("THAW_CACHE", str(cache / "at once"))
    monkeypatch.setattr(stored_pass, "rows_per_pass", lambda pixels, batch_size, device: 2 * batch_size + 1)
    np.testing.assert_allclose(np.load(views_store() / VIEWS_FILE), first, rtol=1e-4, atol=1e-5)


def test_views_are_stored_and_trained_on_in_front_of_the_late_group_too() -> None:
    cut = network()
    halves, of_late = cut_network(cut, "late", 32), key_parts() | {"cut": "late"}
    stored = read_activations(open_activations(cut, pictures(), of_late, SETTINGS, halves))
    folder = open_views(cut, pictures(), Views(TRAIN, VIEWS, HOW, 0), of_late, SETTINGS, halves)
    views = np.load(folder / VIEWS_FILE)
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
