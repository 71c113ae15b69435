from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.body import Body, build_body
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import Network
from pipeline.training.on_cpu import folded
from pipeline.training.on_cpu.folded import FoldedStatistics, norms_after
from pipeline.training.step import steps_of

PACKAGED = "tf_efficientnet_lite0"


class Branches(nn.Module):
    """A convolution that its BatchNorm alone sees, one that a sum sees too, and a BatchNorm that sees a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4)
        self.second, self.second_norm, self.last_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first_norm(self.first(images)).relu_()
        more = self.second(maps)
        return self.last_norm(self.second_norm(more) + more).mean((2, 3))


class Choosing(nn.Module):
    """Of two courses, the images choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.norm(self.conv(images)) if images.mean() < 1e9 else images
        return maps.mean((2, 3))


def network_on(module: nn.Module, activations: int = 4) -> Network:
    """A network on this body, in double precision, whose every norm and bias does something."""
    torch.manual_seed(0)
    network = Network(Body(module, activations, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), 2, 0, 0.0).double()
    nn.init.normal_(network.head[-1].weight)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return network


def branches() -> Network:
    return network_on(Branches())


def packaged() -> Network:
    body = build_body(PACKAGED, 32)
    return network_on(body.module, body.activations)


def gradients(network: Network, *, is_folded: bool) -> dict[str, Tensor]:
    """The gradients of all weights, and the logits."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    network.zero_grad()
    if is_folded:
        with FoldedStatistics(network):
            logits = network(images)
    else:
        logits = network(images)
    logits[:, 0].sum().backward()
    found = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    return found | {"logits": logits.detach()}


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The BatchNorms that are folded, as they are."""
    seen: list[nn.Module] = []
    fold: Callable[..., tuple[Tensor, Tensor]] = folded._folded

    def noted(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        seen.append(norm)
        return fold(weight, bias, norm)

    monkeypatch.setattr(folded, "_folded", noted)
    return seen


@pytest.mark.parametrize("build", [branches, packaged])
def test_logits_and_gradients_are_those_of_the_network_as_it_is(build: Callable[[], Network]) -> None:
    network = build()
    training_mode(network, "all")
    expected, found = gradients(network, is_folded=False), gradients(network, is_folded=True)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-9, atol=1e-9, msg=name)


def test_every_norm_of_the_packaged_network_is_folded(norms: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    network = packaged()
    training_mode(network, "all")
    monkeypatch.setattr(torch, "batch_norm", None)  # what any other would call
    with FoldedStatistics(network):
        network.body(torch.rand(1, 3, 32, 32, dtype=torch.double))
    assert norms == [part for part in network.body.modules() if isinstance(part, nn.BatchNorm2d)]


def test_a_result_that_something_else_sees_too_stays_as_it_is(norms: list[nn.Module]) -> None:
    network = branches()
    training_mode(network, "all")
    gradients(network, is_folded=True)
    assert isinstance(network.body, Branches)
    assert norms == [network.body.first_norm]


def test_statistics_that_are_learned_are_not_folded(norms: list[nn.Module]) -> None:
    network, other = branches(), branches()
    for one, is_folded in ((network, True), (other, False)):
        training_mode(one, "none")
        gradients(one, is_folded=is_folded)
    assert not norms
    for name, statistics in network.named_buffers():
        assert torch.equal(statistics, dict(other.named_buffers())[name])


def test_a_network_whose_course_hangs_on_its_images_stays_as_it_is(norms: list[nn.Module]) -> None:
    network = network_on(Choosing())
    training_mode(network, "all")
    gradients(network, is_folded=True)
    assert not norms


class Noisy(Branches):
    """Draws random numbers of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.rand(4)


def test_looking_for_norms_leaves_the_random_state_as_it_was() -> None:
    body = Noisy()
    state = torch.get_rng_state()
    assert norms_after(body)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_steps_on_a_cpu_fold_them(norms: list[nn.Module]) -> None:
    network = branches().float()
    training_mode(network, "body")
    step = steps_of(network, torch.optim.SGD(network.parameters(), lr=0.1))
    step(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), None)
    assert len(norms) == 1
