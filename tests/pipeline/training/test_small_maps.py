import pytest
import torch
from torch import Tensor, nn

from pipeline.training import small_maps
from pipeline.training.small_maps import PaddedSmallMaps
from pipeline.training.step import steps_of

torch.set_num_threads(1)  # tensors this small are slower on two threads


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The paddings of maps, as they are made."""
    made: list[tuple[int, ...]] = []
    pad = small_maps.F.pad

    def noted(images: Tensor, margins: tuple[int, ...]) -> Tensor:
        made.append(margins)
        return pad(images, margins)

    monkeypatch.setattr(small_maps.F, "pad", noted)
    return made


def results(layer: nn.Conv2d, rows: int, columns: int, *, is_padded: bool) -> list[Tensor]:
    """The layer's maps of random ones, and the gradients of its input, weights and bias."""
    images = torch.randn(2, 8, rows, columns, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer.zero_grad()
    if is_padded:
        with PaddedSmallMaps():
            maps = layer(images)
    else:
        maps = layer(images)
    maps.square().sum().backward()  # type: ignore[no-untyped-call]
    assert maps.is_contiguous(memory_format=torch.channels_last)
    gradients = [images.grad, *(parameter.grad.clone() for parameter in layer.parameters())]
    return [maps.detach(), *gradients]


@pytest.mark.parametrize(
    ("rows", "columns", "margins"), [(4, 4, (0, 1, 0, 1)), (2, 6, (0, 0, 0, 3)), (5, 5, None), (7, 9, None)]
)
def test_maps_smaller_than_a_depthwise_kernel_are_padded_which_changes_no_result(
    padded: list[tuple[int, ...]], rows: int, columns: int, margins: tuple[int, ...] | None
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8)
    found = results(layer, rows, columns, is_padded=True)
    assert padded == ([] if margins is None else [margins])
    for one, other in zip(found, results(layer, rows, columns, is_padded=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 5, padding=2), nn.Conv2d(8, 8, 5, 2, padding=2, groups=8)])
def test_other_convolutions_are_left_alone(padded: list[tuple[int, ...]], layer: nn.Conv2d) -> None:
    results(layer, 4, 4, is_padded=True)
    assert not padded


def test_training_steps_on_a_cpu_pad_such_maps(padded: list[tuple[int, ...]]) -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Flatten(), nn.Linear(8 * 16, 2))
    step = steps_of(network, torch.optim.SGD(network.parameters(), lr=0.1))
    step(torch.randn(2, 8, 4, 4), torch.tensor([0, 1]), None)
    assert padded == [(0, 1, 0, 1)]
