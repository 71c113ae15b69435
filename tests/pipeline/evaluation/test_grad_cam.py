import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluation import grad_cam as grad_cam_file
from pipeline.evaluation.grad_cam import explain_predictions, grad_cam
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.network import Network


def network_of(backbone: str, image_px: int = 64) -> Network:
    torch.manual_seed(0)
    network = build_network(Checkpoint(backbone, ["a", "b"], 0, 0.0, image_px, "crop", False))
    torch.nn.init.normal_(network.head[-1].weight)
    return network


def images(size: int = 64) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


class Bright(nn.Module):
    """A body whose feature map is the picture, made smaller, in two channels: light, and its lack."""

    num_features = 2

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last

    def forward_features(self, pictures: Tensor) -> Tensor:
        light = nn.functional.avg_pool2d(pictures.mean(1, keepdim=True), 4)
        features = torch.cat([light, 1 - light], 1)
        return features.permute(0, 2, 3, 1) if self.channels_last else features

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((1, 2) if self.channels_last else (2, 3))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(pictures))


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_speaks_for_a_class_is_hot_wherever_the_channels_are(channels_last):
    network = network_of("test_resnet")
    network.body, network.head = Bright(channels_last), nn.Linear(2, 2, bias=False)
    network.mean.fill_(0), network.std.fill_(1)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(2))
    half = torch.zeros(1, 3, 32, 32)
    half[..., :16] = 1
    for target, hot, cold in ((0, slice(0, 12), slice(20, 32)), (1, slice(20, 32), slice(0, 12))):
        heat = grad_cam(network, half, torch.tensor([target]))
        assert heat.shape == (1, 32, 32)
        assert heat[0, :, hot].min() > 0.95
        assert heat[0, :, cold].max() < 0.05


@pytest.mark.parametrize(
    ("backbone", "image_px"), [("test_resnet", 64), ("test_efficientnet", 64), ("resnet18", 64),
                               ("swin_tiny_patch4_window7_224", 224)],
)  # fmt: skip
def test_real_backbones_with_a_map_give_a_heat_for_each_picture(backbone, image_px):
    network = network_of(backbone, image_px)
    heats = [grad_cam(network, images(image_px), torch.tensor([target] * 2)) for target in (0, 1)]
    assert [heat.shape for heat in heats] == [(2, image_px, image_px)] * 2
    assert min(heat.min() for heat in heats) == 0
    assert max(heat.max() for heat in heats) == 1


def test_a_backbone_of_tokens_has_none():
    assert grad_cam(network_of("test_vit", 160), images(160), torch.tensor([0, 1])) is None


def test_the_classes_are_spoken_for_by_different_places():
    network = network_of("test_resnet")
    first, second = (grad_cam(network, images(), torch.tensor([target] * 2)) for target in (0, 1))
    assert np.abs(first - second).max() > 0.1


def test_the_network_is_left_as_it_was():
    network = network_of("test_resnet").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    grad_cam(network, images(), torch.tensor([0, 1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("number", [1, 4, 7])
def test_each_picture_has_the_heat_of_its_own_class_however_many_are_explained(monkeypatch, number):
    monkeypatch.setattr(grad_cam_file, "PICTURES_AT_ONCE", 3)
    network, device = network_of("test_resnet"), torch.device("cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    rows = pd.DataFrame({"row": [15, 3, 8, 9, 0, 19, 2], "predicted": list("abbabab")}, index=range(50, 57))[:number]
    heats = explain_predictions(network, pixels, rows, ["a", "b"], device)
    assert list(heats) == rows["row"].tolist()
    for row, predicted in rows.itertuples(index=False):
        image = torch.from_numpy(pixels[[row]]).permute(0, 3, 1, 2) / 255
        (alone,) = grad_cam(network, image, torch.tensor(["ab".index(predicted)]))
        np.testing.assert_allclose(heats[row], alone, atol=1e-3)


def test_of_a_backbone_of_tokens_no_picture_is_explained():
    network, pixels = network_of("test_vit", 160), np.zeros((1, 160, 160, 3), np.uint8)
    rows = pd.DataFrame({"row": [0], "predicted": ["a"]})
    assert explain_predictions(network, pixels, rows, ["a", "b"], torch.device("cpu")) is None
