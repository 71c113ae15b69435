from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.on_cpu import depthwise
from pipeline.training.on_cpu.depthwise import DepthwiseGradients
from pipeline.training.step import steps_of

pytestmark = pytest.mark.skipif(not depthwise.HAS_ROUTINES, reason="needs oneDNN's depthwise routines")

DEPTHWISE = [
    nn.Conv2d(8, 8, 3, padding=1, groups=8),
    nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False),
    nn.Conv2d(8, 8, 5, padding=2, groups=8),
    nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False),
    nn.Conv2d(8, 8, (2, 1), padding=(1, 0), stride=3, groups=8),
    nn.Conv2d(8, 8, (5, 7), stride=(2, 1), padding=(3, 3), groups=8),
    nn.Conv2d(8, 8, 9, padding=4, groups=8),
]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The kernels of which gradients are left to torch, and its images, as they come, in turns."""
    found: list[Tensor] = []
    routine: Callable[..., Tensor] = depthwise._routine

    def noted(gradient: Tensor, images: Tensor, kernels: Tensor, *more: Any, **which: bool) -> Tensor:
        found.extend([kernels, images])
        return routine(gradient, images, kernels, *more, **which)

    monkeypatch.setattr(depthwise, "_routine", noted)
    return found


def results(layer: nn.Conv2d, rows: int, columns: int, *, is_faster: bool, is_half: bool = False) -> list[Tensor]:
    """The layer's maps of random ones, and the gradients of its input, weights and bias."""
    images = torch.randn(2, 8, rows, columns, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        if is_faster:
            with DepthwiseGradients():
                maps = layer(images)
        else:
            maps = layer(images)
    maps.float().square().sum().backward()  # type: ignore[no-untyped-call]
    gradients = [images.grad, *(parameter.grad.clone() for parameter in layer.parameters())]
    return [maps.detach(), *gradients]


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6), (9, 7), (17, 16)])
@pytest.mark.parametrize("layer", DEPTHWISE, ids=str)
def test_gradients_of_depthwise_convolutions_are_those_of_torch(
    computed: list[Tensor], layer: nn.Conv2d, rows: int, columns: int
) -> None:
    found = results(layer, rows, columns, is_faster=True)
    assert computed
    for one, other in zip(found, results(layer, rows, columns, is_faster=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (9, 7)])
@pytest.mark.parametrize("layer", DEPTHWISE, ids=str)
def test_in_bfloat16_they_are_off_by_its_rounding_alone(layer: nn.Conv2d, rows: int, columns: int) -> None:
    exact = results(layer, rows, columns, is_faster=False)
    maps, *gradients = results(layer, rows, columns, is_faster=True, is_half=True)
    assert maps.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    for one, other in zip([maps, *gradients], exact, strict=True):
        assert float((one - other).norm()) < 0.01 * float(other.norm())


@pytest.mark.parametrize("layer", [layer for layer in DEPTHWISE if layer.kernel_size[1] > 3], ids=str)
def test_what_is_left_to_torch_is_what_onednn_has_routines_for(computed: list[Tensor], layer: nn.Conv2d) -> None:
    results(layer, 4, 6, is_faster=True, is_half=True)
    assert len(computed[::2]) == -(-layer.kernel_size[1] // 3), "its strips, and no gradient of images"
    for kernels, images in zip(computed[::2], computed[1::2], strict=True):
        assert kernels.shape[3] == 3
        assert kernels.shape[2] <= images.shape[2]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 5, padding=2),
        nn.Conv2d(8, 16, 5, padding=2, groups=8),
        nn.Conv2d(8, 8, 5, padding="same", groups=8),
        nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
        nn.Conv2d(8, 8, 3, padding=3, groups=8),
    ],
)
def test_other_convolutions_are_left_alone(computed: list[Tensor], layer: nn.Conv2d) -> None:
    results(layer, 4, 4, is_faster=True)
    assert not computed


def test_frozen_kernels_have_no_gradient(computed: list[Tensor]) -> None:
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 8, 4, 4, requires_grad=True)
    with DepthwiseGradients():
        layer(images).sum().backward()
    assert images.grad is not None
    assert layer.weight.grad is None
    assert not computed


def test_training_steps_on_a_cpu_compute_them_so(computed: list[Tensor]) -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Flatten(), nn.Linear(8 * 16, 2))
    step = steps_of(network, torch.optim.SGD(network.parameters(), lr=0.1))
    step(torch.randn(2, 8, 4, 4), torch.tensor([0, 1]), None)
    assert [kernels.shape for kernels in computed[::2]] == [(8, 1, 5, 3)] * 2
