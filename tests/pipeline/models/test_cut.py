from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches
from pipeline.data.loader import Split, pixel_batches
from pipeline.models.activations import Dtype, StoreSettings, activation_batches, open_activations, read_activations
from pipeline.models.body import Body, build_body, load_weights
from pipeline.models.cut import Above, Halves, cut_network
from pipeline.models.layer_groups import FixedStatistics, freeze, layer_groups, training_mode
from pipeline.models.network import Network
from pipeline.models.weights import find_weights
from pipeline.system.errors import UserError
from pipeline.training.fit import Phase, fit
from pipeline.training.on_cpu import folded
from pipeline.training.optim import thaw, thaw_above
from pipeline.training.records import EpochRecord

CPU = torch.device("cpu")
BACKBONES = ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]
OTHERS = ["test_convnext", "test_mambaout", "test_nfnet", "test_vit2", "mobilenetv3_small_050"]
SHAPES = {"resnet18": (128, 4, 4), "tf_efficientnet_lite0": (40, 4, 4), "vit_tiny_patch16_224": (5, 192)}
# Large patches: on noise, all pictures are much alike to a network that has seen real ones.
PIXELS = np.random.default_rng(0).integers(0, 256, (22, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
SPLIT = Split(np.arange(16), np.arange(16, 22), np.arange(22) % 3)
STILL = Augmentation("none", 0, 1.0, 1.0, 0, 1.0)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def build(backbone: str) -> Network:
    """A network whose last layer is not as it was born, so that its work shows; lite0 with its own weights."""
    torch.manual_seed(0)
    network = Network(build_body(backbone, 32), 3, 8, 0.5)
    nn.init.normal_(network.head[-1].weight)
    if backbone == "tf_efficientnet_lite0":
        load_weights(network.body, backbone, find_weights(backbone, "auto", 0))
    return network


@pytest.mark.parametrize("backbone", BACKBONES + OTHERS)
def test_below_and_above_the_cut_give_the_logits_of_the_whole_network_bit_for_bit(backbone: str) -> None:
    network = build(backbone)
    halves = cut_network(network, "late", 32)
    network.eval()
    with torch.no_grad():
        activations, whole = halves.below(images()), network(images())
        assert torch.equal(halves.above(activations), whole)
    assert activations.shape == (3, *halves.shape)
    assert halves.shape == SHAPES.get(backbone, halves.shape)
    assert whole.std() > 1e-3


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_early_group_lies_below_the_cut_and_the_late_one_and_the_head_above(backbone: str) -> None:
    network = build(backbone)
    halves, groups = cut_network(network, "late", 32), layer_groups(network)
    network.eval()
    stored = halves.below(images()).detach()
    halves.above(stored).sum().backward()
    reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert reached == {*groups["late"], *groups["head"]}
    network.zero_grad(set_to_none=True)
    halves.below(images()).sum().backward()
    assert {name for name, parameter in network.named_parameters() if parameter.grad is not None} == {*groups["early"]}


def test_in_front_of_the_head_a_network_is_cut_into_its_body_and_its_head() -> None:
    network = build("test_resnet")
    halves = cut_network(network, "head", 32)
    assert halves == Halves(network.activations, network.head, (network.width,))


def test_cutting_a_network_leaves_no_trace_in_it() -> None:
    network = build("tf_efficientnet_lite0")
    freeze(network, "early")
    training_mode(network)
    modes = [module.training for module in network.modules()]
    before, random = {name: tensor.clone() for name, tensor in network.state_dict().items()}, torch.get_rng_state()
    halves = cut_network(network, "late", 32)
    halves.below(images())
    assert [module.training for module in network.modules()] == modes
    assert {True, False} == set(modes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_what_lies_above_shares_its_weights_with_the_network_and_has_its_modes() -> None:
    network = build("tf_efficientnet_lite0")
    above = cut_network(network, "late", 32).above
    assert {id(parameter) for parameter in above.parameters()} == {id(parameter) for parameter in network.parameters()}
    freeze(network, "early")
    for fixed in ("body", "none"):
        training_mode(network, fixed)
        wanted = [module.training for module in network.modules()]
        network.eval()
        training_mode(above, fixed)
        assert [module.training for module in network.modules()] == wanted


class Chain(nn.Module):
    """A body of three layers, and what `between` makes of what goes from one to the next."""

    def __init__(self, between: Callable[[int, Tensor, Tensor], Tensor] = lambda number, now, first: now) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.between = between

    def group_matcher(self, coarse: bool) -> dict[str, str | list[tuple[str, tuple[int]]]]:
        return {"stem": r"^first", "blocks": [(r"^second", (0,)), (r"^third", (1,))]}

    def forward_features(self, inputs: Tensor) -> Tensor:
        first = now = self.first(inputs)
        for number, layer in enumerate((self.second, self.third)):
            now = self.between(number, layer(now), first)
        return now

    def forward_head(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(inputs))


def of(body: nn.Module) -> Network:
    return Network(Body(body, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 2, 0, 0.0)


class Headless(Chain):
    forward_head = None  # type: ignore[assignment]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_features(inputs).mean((2, 3))


class LateFirst(Chain):
    def group_matcher(self, coarse: bool) -> dict[str, str | list[tuple[str, tuple[int]]]]:
        return {"stem": r"^third", "blocks": [(r"^second", (0,)), (r"^first", (1,))]}


def test_a_body_that_is_a_chain_is_cut() -> None:
    above = cut_network(of(Chain()), "late", 16).above
    assert isinstance(above, Above)


@pytest.mark.parametrize(
    "body",
    [
        Chain(lambda number, now, first: now + first),
        Chain(lambda number, now, first: now * (1 + 1e-6 * number)),
        Chain(lambda number, now, first: now * float("nan")),
        Headless(),
        LateFirst(),
    ],
    ids=["a skip over the cut", "a step between layers", "not a number", "no head of its own", "late before early"],
)
def test_a_body_that_cannot_be_cut_is_refused_in_a_sentence_with_the_key(body: nn.Module) -> None:
    with pytest.raises(UserError, match=r"^precompute\.cut is late, but .* set precompute\.cut to head, or") as raised:
        cut_network(of(body), "late", 16)
    assert "\n" not in str(raised.value)


def test_a_backbone_of_timms_that_feeds_its_blocks_more_than_one_tensor_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot be cut .* choose another model\.backbone\."):
        cut_network(Network(build_body("eva02_tiny_patch14_224", 28), 3, 8, 0.5), "late", 28)


Trained = tuple[list[float], dict[str, Tensor]]


def trained(
    module: nn.Module, optimizer: Optimizer, batches: tuple[Batches, Batches], network: Network, fixed: FixedStatistics
) -> Trained:
    """The loss before each of four steps and the validation loss after them; and the network's state then."""
    (record,) = fit(Phase(module, optimizer, *batches, [1], fixed_statistics=fixed))
    assert isinstance(record, EpochRecord)
    return [*(step.loss for step in record.steps), record.valid_loss], network.state_dict()


def train_whole(backbone: str, rates: dict[str, float], fixed: FixedStatistics) -> Trained:
    """Through all of the network, with the early group frozen."""
    network = build(backbone)
    train, valid = pixel_batches(PIXELS, SPLIT, STILL, 4, CPU, 0)
    optimizer = thaw(network, "early", rates, 0.01)
    return trained(network, optimizer, (replace(train, augmentation=None), valid), network, fixed)


def train_from_store(backbone: str, rates: dict[str, float], fixed: FixedStatistics, dtype: Dtype) -> Trained:
    """From activations stored at the cut."""
    network = build(backbone)
    halves = cut_network(network, "late", 32)
    folder = open_activations(network, PIXELS, {"dtype": dtype, "fixed": fixed}, StoreSettings(5, dtype, CPU), halves)
    batches = activation_batches(read_activations(folder), SPLIT, 4, CPU, 0)
    above, optimizer = thaw_above(network, "late", 32, "early", rates, 0.01)
    return trained(above, optimizer, batches, network, fixed)


@pytest.fixture
def _unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm stays what it is: folded into convolutions, the part below the cut would give other last digits than
    stored activations, of which training on four tiny pictures makes much."""
    monkeypatch.setattr(folded, "norms_after", lambda body: {})


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@pytest.mark.usefixtures("_unfolded")
@pytest.mark.parametrize(
    ("backbone", "fixed"),
    [
        ("resnet18", "body"),
        ("tf_efficientnet_lite0", "body"),
        ("test_efficientnet", "none"),
        ("vit_tiny_patch16_224", "all"),
    ],
)
def test_training_from_the_store_is_training_the_whole_network_with_the_groups_below_frozen(
    backbone: str, fixed: FixedStatistics
) -> None:
    rates = {"late": 1e-3, "head": 1e-2}
    losses, weights = train_whole(backbone, rates, fixed)
    from_store, weights_from_store = train_from_store(backbone, rates, fixed, "float32")
    assert len(set(losses)) == 5
    assert from_store == pytest.approx(losses, rel=1e-6)
    assert largest_difference(weights, weights_from_store) < 1e-6
    assert largest_difference(weights, build(backbone).state_dict()) > 1e-3


@pytest.mark.usefixtures("_unfolded")
def test_half_precision_costs_training_from_the_store_next_to_nothing() -> None:
    backbone, rates = "tf_efficientnet_lite0", {"late": 1e-4, "head": 1e-3}
    losses, weights = train_whole(backbone, rates, "body")
    from_store, weights_from_store = train_from_store(backbone, rates, "body", "float16")
    assert from_store == pytest.approx(losses, rel=0.03)
    assert from_store != losses
    assert largest_difference(weights, weights_from_store) < 0.02


def test_with_the_late_group_frozen_too_the_head_alone_is_trained_from_the_store() -> None:
    network = build("test_resnet")
    halves, groups = cut_network(network, "late", 32), layer_groups(network)
    folder = open_activations(network, PIXELS, {}, StoreSettings(5, "float32", CPU), halves)
    above, optimizer = thaw_above(network, "late", 32, "body", {"head": 0.01}, 0.01)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    list(fit(Phase(above, optimizer, *activation_batches(read_activations(folder), SPLIT, 4, CPU, 0), [1])))
    moved = {name for name, tensor in network.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == set(groups["head"])
