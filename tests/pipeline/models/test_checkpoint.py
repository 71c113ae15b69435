import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.models.checkpoint import (
    WEIGHTS,
    Checkpoint,
    build_network,
    load_checkpoint,
    save_checkpoint,
    start_network,
)
from pipeline.models.network import Network
from pipeline.models.weights import Weights
from pipeline.system.errors import UserError

FACTS = Checkpoint("test_resnet", ["cat", "dög", "…"], 8, 0.3, 32, "pad", False, epochs=7, steps=91)


def trained(checkpoint: Checkpoint = FACTS) -> Network:
    """A network in which every tensor, buffers included, is unlike a new one's."""
    torch.manual_seed(5)
    network = build_network(checkpoint)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        else:
            tensor.fill_(17)
    return network


def test_training_starts_from_the_weights_given_and_from_a_head_that_the_seed_decides(tmp_path: Path) -> None:
    body = trained().body.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in body.items()}, tmp_path / "own.safetensors")
    own = Weights("file", tmp_path / "own.safetensors", "own")
    first, again, other = (start_network(FACTS, own, seed) for seed in (1, 1, 2))
    for network in (first, other):
        assert all(torch.equal(tensor, body[name]) for name, tensor in network.body.state_dict().items())
    assert torch.equal(first.head[2].weight, again.head[2].weight)
    assert not torch.equal(first.head[2].weight, other.head[2].weight)


def images(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("hidden", [0, 8])
def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path, backbone: str, hidden: int) -> None:
    checkpoint = replace(FACTS, backbone=backbone, hidden=hidden)
    network = trained(checkpoint)
    save_checkpoint(network, checkpoint, tmp_path / "checkpoint")
    loaded, facts = load_checkpoint(tmp_path / "checkpoint")
    saved = network.state_dict()
    assert facts == checkpoint
    assert list(loaded.state_dict()) == list(saved)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == saved[name].dtype
        assert torch.equal(tensor, saved[name]), name


def test_running_statistics_come_back_too(tmp_path: Path) -> None:
    network = trained()
    save_checkpoint(network, FACTS, tmp_path)
    loaded, _ = load_checkpoint(tmp_path)
    before = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    after = [module for module in loaded.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(after) == len(before) > 0
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.running_mean, other.running_mean)
        assert torch.equal(one.running_var, other.running_var)
        assert int(other.num_batches_tracked) == 17


def test_the_loaded_network_gives_the_same_logits(tmp_path: Path) -> None:
    network = trained().eval()
    save_checkpoint(network, FACTS, tmp_path)
    loaded, _ = load_checkpoint(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images()), network(images()))


def test_a_checkpoint_is_safetensors_and_json_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoint"
    save_checkpoint(trained(), FACTS, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert [path.name for path in files] == ["checkpoint.json", "network.safetensors", "store.json"]
    content = files[1].read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) - {"__metadata__"} == set(trained().state_dict())


def test_the_facts_can_be_read_by_a_person(tmp_path: Path) -> None:
    save_checkpoint(trained(), FACTS, tmp_path)
    text = (tmp_path / "checkpoint.json").read_text(encoding="utf-8")
    assert "dög" in text
    assert json.loads(text)["classes"] == ["cat", "dög", "…"]


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    network = trained()
    save_checkpoint(network, FACTS, tmp_path)
    network.head[-1].bias.data.fill_(3)
    save_checkpoint(network, replace(FACTS, epochs=8), tmp_path)
    loaded, facts = load_checkpoint(tmp_path)
    assert facts.epochs == 8
    assert torch.equal(loaded.head[-1].bias, torch.full((3,), 3.0))


@pytest.mark.parametrize(
    ("backbone", "image_px"), [("test_resnet", 48), ("test_vit", 160), ("vit_tiny_patch16_224", 64)]
)
def test_a_network_can_be_loaded_for_images_of_another_size(tmp_path: Path, backbone: str, image_px: int) -> None:
    checkpoint = replace(FACTS, backbone=backbone)
    network = trained(checkpoint).eval()
    save_checkpoint(network, checkpoint, tmp_path)
    loaded, facts = load_checkpoint(tmp_path, image_px)
    assert facts == replace(checkpoint, image_px=image_px)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images(image_px)), network(images(image_px)))


def test_a_loaded_network_lies_channels_last_in_memory(tmp_path: Path) -> None:
    save_checkpoint(trained(), FACTS, tmp_path)
    loaded, _ = load_checkpoint(tmp_path)
    weights = [module.weight for module in loaded.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_a_backbone_made_for_one_size_says_that_it_cannot_go_on_at_another(tmp_path: Path) -> None:
    fixed = replace(FACTS, backbone="cait_xxs24_224", image_px=224)
    save_checkpoint(build_network(fixed), fixed, tmp_path)
    with pytest.raises(UserError, match="cannot go on at 256 px"):
        load_checkpoint(tmp_path, 256)


def test_a_checkpoint_of_another_network_does_not_load(tmp_path: Path) -> None:
    save_checkpoint(trained(), replace(FACTS, hidden=16), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, "checkpoint.json"])
def test_a_checkpoint_in_which_a_bit_has_flipped_is_reported_and_not_loaded(tmp_path, name):
    checkpoint = Checkpoint("tf_efficientnet_lite0", ["a", "b"], 0, 0.0, 32, "crop", grey=False)
    save_checkpoint(build_network(checkpoint), checkpoint, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-3] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(tmp_path)
