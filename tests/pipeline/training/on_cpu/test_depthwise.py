from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.on_cpu import depthwise
from pipeline.training.on_cpu.depthwise import LARGEST_MAP_PX, DepthwiseGradients
from pipeline.training.step import steps_of

torch.set_num_threads(1)  # tensors this small are slower on two threads
pytestmark = pytest.mark.skipif(not depthwise.HAS_ROUTINES, reason="needs oneDNN's depthwise routines")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of kernels whose gradient is computed as a convolution, as they come."""
    shapes: list[torch.Size] = []
    gradient_of: Callable[..., Tensor] = depthwise._kernel_gradient

    def noted(images: Tensor, gradient: Tensor, shape: torch.Size, *more: tuple[int, int]) -> Tensor:
        shapes.append(shape)
        return gradient_of(images, gradient, shape, *more)

    monkeypatch.setattr(depthwise, "_kernel_gradient", noted)
    return shapes


def results(layer: nn.Conv2d, rows: int, columns: int, *, is_faster: bool) -> list[Tensor]:
    """The layer's maps of random ones, and the gradients of its input, weights and bias."""
    images = torch.randn(2, 8, rows, columns, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer.zero_grad()
    if is_faster:
        with DepthwiseGradients():
            maps = layer(images)
    else:
        maps = layer(images)
    maps.square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = [images.grad, *(parameter.grad.clone() for parameter in layer.parameters())]
    return [maps.detach(), *gradients]


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 6), (9, 7), (11, 12)])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False),
        nn.Conv2d(8, 8, (5, 7), stride=(2, 1), padding=(3, 3), groups=8),
    ],
)
def test_gradients_of_wide_depthwise_kernels_are_those_of_torch(
    computed: list[torch.Size], layer: nn.Conv2d, rows: int, columns: int
) -> None:
    found = results(layer, rows, columns, is_faster=True)
    assert computed == [layer.weight.shape]
    for one, other in zip(found, results(layer, rows, columns, is_faster=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_on_large_maps_torch_computes_them(computed: list[torch.Size]) -> None:
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    side = int(LARGEST_MAP_PX**0.5)
    for one, other in zip(
        results(layer, side, side + 1, is_faster=True), results(layer, side, side + 1, is_faster=False), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert not computed


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 5, padding=2),
        nn.Conv2d(8, 16, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
    ],
)
def test_other_convolutions_are_left_alone(computed: list[torch.Size], layer: nn.Conv2d) -> None:
    results(layer, 4, 4, is_faster=True)
    assert not computed


def test_frozen_kernels_have_no_gradient(computed: list[torch.Size]) -> None:
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 8, 4, 4, requires_grad=True)
    with DepthwiseGradients():
        layer(images).sum().backward()
    assert images.grad is not None
    assert layer.weight.grad is None
    assert not computed


def test_training_steps_on_a_cpu_compute_them_so(computed: list[torch.Size]) -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Flatten(), nn.Linear(8 * 16, 2))
    step = steps_of(network, torch.optim.SGD(network.parameters(), lr=0.1))
    step(torch.randn(2, 8, 4, 4), torch.tensor([0, 1]), None)
    assert computed == [network[0].weight.shape]
