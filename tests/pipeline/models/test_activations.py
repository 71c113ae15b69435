from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from pipeline.cache.hashing import content_key
from pipeline.cache.store import is_whole
from pipeline.data.batches import fetch_activations, fetch_pixels
from pipeline.data.loader import Split
from pipeline.models import activations
from pipeline.models.activations import (
    FILE,
    Dtype,
    StoreSettings,
    activation_batches,
    activation_key_parts,
    check_store_size,
    open_activations,
    read_activations,
    read_last_activations,
    with_precision,
    write_activations,
)
from pipeline.models.body import build_body
from pipeline.models.checkpoint import Checkpoint, save_checkpoint
from pipeline.models.cut import Cut, cut_network
from pipeline.models.engine import stored_pass
from pipeline.models.network import Network
from pipeline.system.errors import UserError

CPU = torch.device("cpu")
COUNT = 11
BACKBONES = ["test_resnet", "test_efficientnet", "test_vit", "tf_efficientnet_lite0"]


def shaken(backbone: str = "test_resnet", head_hidden: int = 8) -> Network:
    """A network whose norms and last layer are not as they were born, so that their work shows."""
    torch.manual_seed(0)
    network = Network(build_body(backbone, 32), 3, head_hidden, 0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
    nn.init.normal_(network.head[-1].weight)
    return network


def pictures(channels: int = 3, count: int = COUNT) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, channels), dtype=np.uint8)


def key_parts(
    hashes: Sequence[str] = ("aa", "bb", "cc"),
    weights: str = "random:0",
    dtype: Dtype = "float32",
    cut: Cut = "head",
    **changed: object,
) -> dict[str, object]:
    checkpoint = Checkpoint("test_resnet", ["a", "b", "c"], 8, 0.5, 32, "crop", False)
    return activation_key_parts(hashes, replace(checkpoint, **changed), weights, dtype, cut)  # type: ignore[arg-type]


def computed(network: Network, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The body's last activations of these rows, in one batch."""
    found = np.empty((len(rows), network.width), dtype=np.float32)
    write_activations(found, network, pixels, rows, StoreSettings(len(rows), "float32", CPU))
    return found


def logits_of(network: Network, pixels: npt.NDArray[np.uint8]) -> Tensor:
    with torch.no_grad():
        return network.eval()(fetch_pixels(pixels, CPU)(np.arange(len(pixels))))


def head_on(network: Network, folder: Path) -> Tensor:
    stored = read_activations(folder)
    with torch.no_grad():
        return network.eval().head(fetch_activations(stored, CPU)(np.arange(len(stored))))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_from_stored_activations_are_the_whole_networks(backbone: str, channels: int) -> None:
    network, pixels = shaken(backbone).train(), pictures(channels)
    folder = open_activations(network, pixels, key_parts(backbone=backbone), StoreSettings(4, "float32", CPU))
    whole = logits_of(network, pixels)
    assert whole.std() > 0.01
    torch.testing.assert_close(head_on(network, folder), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_costs_the_logits_next_to_nothing(backbone: str) -> None:
    network, pixels = shaken(backbone).train(), pictures()
    folder = open_activations(network, pixels, key_parts(dtype="float16"), StoreSettings(4, "float16", CPU))
    whole = logits_of(network, pixels)
    torch.testing.assert_close(head_on(network, folder), whole, rtol=0.02, atol=0.02 * float(whole.abs().max()))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_has_a_row_per_picture_in_the_type_asked_for(dtype: Dtype) -> None:
    network = shaken()
    stored = read_activations(
        open_activations(network, pictures(), key_parts(dtype=dtype), StoreSettings(4, dtype, CPU))
    )
    assert stored.shape == (COUNT, network.width)
    assert stored.dtype == np.dtype(dtype)


def test_every_row_is_that_of_its_picture_whatever_the_batch_size() -> None:
    network, pixels = shaken(), pictures()
    one_by_one = np.concatenate([computed(network, pixels, np.array([row])) for row in range(COUNT)])
    for batch_size in (1, 4, COUNT, 64):
        folder = open_activations(
            network, pixels, key_parts(weights=f"random:{batch_size}"), StoreSettings(batch_size, "float32", CPU)
        )
        np.testing.assert_allclose(read_activations(folder), one_by_one, rtol=1e-4, atol=1e-4)


def test_computing_activations_moves_no_running_statistics() -> None:
    network = shaken().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    open_activations(network, pictures(), key_parts(), StoreSettings(4, "float32", CPU))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_stored_activations_cannot_be_written_to() -> None:
    stored = read_activations(open_activations(shaken(), pictures(), key_parts(), StoreSettings(4, "float32", CPU)))
    with pytest.raises(ValueError, match="read-only"):
        stored[0] = 0


@pytest.mark.parametrize(
    "changed",
    [
        {"hashes": ["aa", "bb", "dd"]},
        {"hashes": ["bb", "aa", "cc"]},
        {"hashes": ["aa", "bb"]},
        {"hashes": ["aa", "bb", "cc", "cc"]},
        {"hashes": ["aab", "b", "cc"]},
        {"image_px": 64},
        {"fit": "pad"},
        {"grey": True},
        {"backbone": "test_efficientnet"},
        {"weights": "random:1"},
        {"dtype": "float16"},
        {"cut": "late"},
    ],
    ids=str,
)
def test_everything_that_could_change_the_activations_changes_the_key(changed: dict[str, object]) -> None:
    assert content_key(key_parts(**changed)) != content_key(key_parts())


def test_a_new_version_of_the_computation_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = content_key(key_parts())
    monkeypatch.setattr("pipeline.models.activations.ACTIVATIONS_VERSION", 10**6)
    assert content_key(key_parts()) != before


def test_the_same_ingredients_give_the_same_key() -> None:
    assert content_key(key_parts()) == content_key(key_parts(hashes=("aa", "bb", "cc")))


def test_what_the_store_is_made_by_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = key_parts()
    assert parts == key_parts(cut="head")
    checkpoint = Checkpoint("test_resnet", ["a", "b", "c"], 8, 0.5, 32, "crop", False)
    decoded_elsewhere = activation_key_parts(["aa", "bb", "cc"], checkpoint, "random:0", "float32", decoder="nvjpeg")
    on_a_gpu = with_precision(parts, torch.device("cuda"))
    real = metadata.version
    keys = [parts, decoded_elsewhere, on_a_gpu]
    for name in ("torch", "torchvision", "timm", "pillow"):
        monkeypatch.setattr(metadata, "version", lambda one: "99.1.2" if one == name else real(one))  # noqa: B023
        keys.append(key_parts())
    assert len({content_key(one) for one in keys}) == 7


def test_a_patch_of_a_library_and_another_build_of_it_keep_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for version in ("2.14.0", "2.14.1+cu130"):
        monkeypatch.setattr(metadata, "version", lambda name: version)  # noqa: B023
        keys.append(content_key(key_parts()))
    assert keys[0] == keys[1]


def test_a_store_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = shaken()
    first = open_activations(network, pictures(), key_parts(), StoreSettings(4, "float32", CPU))
    monkeypatch.setattr(network, "activations", None)  # would fail if it were called
    assert open_activations(network, pictures(), key_parts(), StoreSettings(4, "float32", CPU)) == first


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_build_stopped_half_way_is_never_opened(
    stop: type[BaseException], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, pixels = shaken(), pictures()
    calls = []

    def stopping(images: Tensor) -> Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise stop
        return Network.activations(network, images)

    with monkeypatch.context() as patched:
        patched.setattr(network, "activations", stopping)
        with pytest.raises(stop):
            open_activations(network, pixels, key_parts(), StoreSettings(4, "float32", CPU))
    assert calls == [4, 4]
    assert [path for path in cache.rglob("*") if path.is_dir() and is_whole(path)] == []
    assert list(cache.rglob(FILE)) == []

    folder = open_activations(network, pixels, key_parts(), StoreSettings(4, "float32", CPU))
    expected = computed(network, pixels, np.arange(COUNT))
    np.testing.assert_allclose(read_activations(folder), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damage", ["no description", "cut short", "missing", "a bit flipped"])
@pytest.mark.parametrize("cut", ["head", "late"])
def test_a_damaged_store_is_reported_and_computed_again(
    cut: Cut, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network, pixels = shaken(), pictures()
    halves = cut_network(network, cut, 32)
    folder = open_activations(network, pixels, key_parts(cut=cut), StoreSettings(4, "float32", CPU), halves)
    whole = np.array(read_activations(folder))
    content = (folder / FILE).read_bytes()
    if damage == "no description":
        (folder / "store.json").unlink()
        (folder / FILE).write_bytes(bytes(len(content)))
    elif damage == "cut short":
        (folder / FILE).write_bytes(content[:-4])
    elif damage == "missing":
        (folder / FILE).unlink()
    else:
        (folder / FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = open_activations(network, pixels, key_parts(cut=cut), StoreSettings(4, "float32", CPU), halves)
    assert again == folder
    assert np.array_equal(read_activations(again), whole)
    assert f"Damaged: the activation store {folder} (" in capsys.readouterr().out


def late_store(network: Network, dtype: Dtype = "float32") -> Path:
    halves = cut_network(network, "late", 32)
    return open_activations(
        network, pictures(), key_parts(cut="late", dtype=dtype), StoreSettings(4, dtype, CPU), halves
    )


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_in_front_of_the_late_group_a_store_holds_the_inputs_of_that_group(backbone: str) -> None:
    network = shaken(backbone)
    halves, stored = cut_network(network, "late", 32), read_activations(late_store(network))
    network.eval()
    with torch.no_grad():
        found = halves.below(fetch_pixels(pictures(), CPU)(np.arange(COUNT)))
    assert stored.shape == (COUNT, *halves.shape)
    np.testing.assert_allclose(stored, found, rtol=1e-4, atol=1e-4)


def test_a_store_of_another_cut_is_never_used() -> None:
    network = shaken()
    plain = open_activations(network, pictures(), key_parts(), StoreSettings(4, "float32", CPU))
    late = late_store(network)
    assert late != plain
    assert open_activations(network, pictures(), key_parts(), StoreSettings(4, "float32", CPU)) == plain
    assert read_activations(late).ndim == 4
    assert read_activations(plain).ndim == 2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("cut", ["head", "late"])
def test_the_bodys_last_activations_come_from_a_store_of_any_cut_and_are_computed_once(
    cut: Cut, dtype: Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint("test_resnet", ["a", "b", "c"], 8, 0.5, 32, "crop", False)
    network = shaken().to(memory_format=torch.channels_last)
    save_checkpoint(network, checkpoint, tmp_path / "checkpoint")
    halves = cut_network(network, cut, 32)
    folder = open_activations(
        network, pictures(), key_parts(cut=cut, dtype=dtype), StoreSettings(4, dtype, CPU), halves
    )
    last = read_last_activations(folder, tmp_path / "checkpoint", cut, 4, CPU)
    expected = computed(network, pictures(), np.arange(COUNT))
    assert last.dtype == np.dtype(dtype)
    np.testing.assert_allclose(last, expected, rtol=0.01, atol=0.01)
    assert expected.std() > 0.1
    monkeypatch.setattr(activations, "load_checkpoint", None)  # would fail if it were called
    again = read_last_activations(folder, tmp_path / "checkpoint", cut, 4, CPU)
    assert isinstance(again, np.memmap)
    assert np.array_equal(again, last)
    assert np.array_equal(read_activations(folder), np.load(folder / FILE)), "the store itself stays as it is"


def test_written_pages_are_released_on_the_way_and_everything_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    release_pages, calls = stored_pass.release_pages, []
    monkeypatch.setattr(stored_pass, "MAPPED_BYTES", 1)
    monkeypatch.setattr(stored_pass, "release_pages", lambda array: calls.append(release_pages(array)))
    network = shaken()
    stored = read_activations(late_store(network))
    assert len(calls) == 3
    halves = cut_network(network.eval(), "late", 32)
    with torch.no_grad():
        found = halves.below(fetch_pixels(pictures(), CPU)(np.arange(COUNT)))
    np.testing.assert_allclose(stored, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_not_blamed_on_their_type(dtype: Dtype, value: float, cache: Path) -> None:
    network = shaken()
    nn.init.constant_(network.body.layer4[-1].bn2.bias, value)  # type: ignore[index, union-attr]
    at_fault = r"precompute\.dtype" if (dtype, value) == ("float16", float("inf")) else r"model\.weights"
    with pytest.raises(UserError, match=at_fault):
        open_activations(network, pictures(), key_parts(dtype=dtype), StoreSettings(4, dtype, CPU))
    assert not list(cache.glob("activations/*/activations.npy"))


def test_activations_that_are_too_large_for_half_precision_are_reported_and_not_stored(cache: Path) -> None:
    network = shaken()
    nn.init.constant_(network.body.layer4[-1].bn2.bias, 1e5)  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match=r"too large for float16; set precompute\.dtype to float32\."):
        open_activations(network, pictures(), key_parts(dtype="float16"), StoreSettings(4, "float16", CPU))
    assert list(cache.rglob(FILE)) == []
    stored = read_activations(open_activations(network, pictures(), key_parts(), StoreSettings(4, "float32", CPU)))
    assert stored.max() >= 1e5


def test_a_store_larger_than_allowed_is_refused_with_its_size_the_key_and_what_to_do() -> None:
    check_store_size(2**20, (8, 4, 16), "float16", 1.0)
    check_store_size(2**20, (8, 4, 16), "float32", 2.0)
    with pytest.raises(UserError) as raised:
        check_store_size(2**20, (8, 4, 16), "float32", 1.5)
    message = str(raised.value)
    assert "shape 8 x 4 x 16 would take 2.00 GiB, more than data.max_store_gib = 1.5 allows; raise it" in message
    assert "precompute.cut" in message
    assert "\n" not in message


def test_stored_activations_are_never_augmented() -> None:
    stored = np.random.default_rng(0).standard_normal((12, 7)).astype(np.float16)
    for batches in activation_batches(stored, Split(np.arange(8), np.arange(8, 12), np.arange(12) % 2), 4, CPU, seed=0):
        assert batches.augmentation is None
        for inputs, _ in batches.epoch(0):
            for row in inputs.numpy():
                assert any(np.array_equal(row, one.astype(np.float32)) for one in stored)


def test_training_batches_bring_each_pictures_weight_and_validation_batches_none() -> None:
    split = Split(np.arange(16), np.arange(16, 24), np.arange(24), np.arange(24, dtype=np.float32) / 2)
    train, valid = activation_batches(np.zeros((24, 3), dtype=np.float16), split, 4, CPU, seed=5)
    seen = [(targets, weights) for _, targets, weights in train.weighted_epoch(0)]
    assert len(seen) == 4
    for targets, weights in seen:
        assert weights is not None
        assert weights.tolist() == (targets / 2).tolist()
    assert [weights for *_, weights in valid.weighted_epoch(0)] == [None] * len(valid)


def test_training_batches_are_shuffled_by_the_seed_and_validation_batches_are_in_order() -> None:
    stored = np.arange(24, dtype=np.float32).reshape(24, 1)
    split = Split(np.arange(16), np.arange(16, 24), np.arange(24) % 2)
    train, valid = activation_batches(stored, split, 4, CPU, seed=5)
    assert train.seed == 5
    assert valid.seed is None
    assert train.batch_size == 4
    assert train.rows.tolist() == split.train.tolist()
    assert valid.rows.tolist() == split.valid.tolist()
    shuffled = [int(value) for inputs, _ in train.epoch(0) for value in inputs]
    assert sorted(shuffled) == list(range(16))
    assert shuffled != list(range(16))
    assert [int(value) for inputs, _ in valid.epoch(0) for value in inputs] == list(range(16, 24))
