import itertools

import pytest
import torch
from torch import nn

from pipeline.models.body import build_body
from pipeline.models.layer_groups import freeze, layer_groups
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.training.optim import build_optimizer, head_optimizer, set_rates, thaw, thaw_above
from pipeline.training.schedule import group_rates

RATES = {"early": 0.001, "late": 0.01, "head": 0.1}


def network(backbone: str = "test_resnet") -> Network:
    return Network(build_body(backbone, 32), 3, 8, 0.5)


def build(backbone: str = "test_resnet", frozen: Frozen = "none") -> Network:
    some = network(backbone)
    freeze(some, frozen)
    return some


def optimizer_of(network: Network, weight_decay: float = 0.05) -> torch.optim.Optimizer:
    return build_optimizer(network, layer_groups(network), RATES, weight_decay)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_vit"])
@pytest.mark.parametrize("frozen", ["none", "early", "body"])
def test_every_trainable_parameter_is_in_once_and_no_frozen_one(backbone: str, frozen: Frozen) -> None:
    network = build(backbone, frozen)
    held = [parameter for group in optimizer_of(network).param_groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert len(held) == len(trainable)
    assert {id(parameter) for parameter in held} == trainable


def test_every_parameter_has_the_rate_of_its_layer_group() -> None:
    network = build()
    groups = layer_groups(network)
    of = {id(parameter): group for group in optimizer_of(network).param_groups for parameter in group["params"]}
    for name, parameter in network.named_parameters():
        layer_group = next(group for group, names in groups.items() if name in names)
        assert of[id(parameter)]["layer_group"] == layer_group
        assert of[id(parameter)]["lr"] == of[id(parameter)]["initial_lr"] == RATES[layer_group]


@pytest.mark.parametrize(("lr", "expected"), [(0.09, [0.01, 0.03, 0.09]), ([0.3, 0.2, 0.1], [0.3, 0.2, 0.1])])
def test_rates_are_given_as_a_list_or_as_one_with_a_ratio(lr: float | list[float], expected: list[float]) -> None:
    network = build()
    optimizer = build_optimizer(network, layer_groups(network), group_rates(lr, 3), 0.0)
    found = {group["layer_group"]: group["lr"] for group in optimizer.param_groups}
    assert found == pytest.approx(dict(zip(("early", "late", "head"), expected, strict=True)))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_weight_decay_leaves_out_norms_biases_and_embeddings(backbone: str) -> None:
    network = build(backbone)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer_of(network, 0.05).param_groups
        for parameter in group["params"]
    }
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    of_norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, norms)
        for parameter in module.parameters(recurse=False)
    }
    for name, parameter in network.named_parameters():
        left_out = name.endswith(("bias", "cls_token", "pos_embed")) or id(parameter) in of_norms
        assert decay[id(parameter)] == (0.0 if left_out else 0.05), name


def test_weights_decay_by_themselves_and_biases_do_not() -> None:
    layer = nn.Linear(3, 2)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_optimizer(layer, {"head": ["weight", "bias"]}, {"head": 0.1}, 0.5)
    layer.weight.grad, layer.bias.grad = torch.zeros(2, 3), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 3), 1 - 0.1 * 0.5))
    assert torch.equal(layer.bias.detach(), torch.ones(2))


def test_set_rates_multiplies_the_first_rates_and_not_the_last_ones() -> None:
    optimizer = optimizer_of(build())
    for factor in (0.5, 0.25, 1.0):
        expected = {group: rate * factor for group, rate in RATES.items()}
        assert set_rates(optimizer, factor) == expected
        for group in optimizer.param_groups:
            assert group["lr"] == expected[group["layer_group"]]
            assert group["initial_lr"] == RATES[group["layer_group"]]


def test_set_rates_names_only_the_groups_that_are_trained() -> None:
    assert set_rates(optimizer_of(build(frozen="body")), 0.5) == {"head": 0.05}
    assert set(set_rates(optimizer_of(build(frozen="early")), 0.5)) == {"late", "head"}


def test_a_step_moves_each_layer_group_by_its_own_rate() -> None:
    network = build()
    optimizer = optimizer_of(network, weight_decay=0.0)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    groups = layer_groups(network)
    for name, parameter in network.named_parameters():
        rate = RATES[next(group for group, names in groups.items() if name in names)]
        torch.testing.assert_close(
            before[name] - parameter.detach(), torch.full_like(parameter, rate), rtol=1e-3, atol=1e-6
        )


def test_each_layer_group_has_at_most_two_optimizer_groups() -> None:
    groups = optimizer_of(build()).param_groups
    kinds = [(group["layer_group"], group["weight_decay"]) for group in groups]
    assert sorted(kinds) == sorted(itertools.product(RATES, (0.0, 0.05)))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(
    ("frozen", "trained"), [("body", {"head"}), ("early", {"late", "head"}), ("none", {"early", "late", "head"})]
)
def test_what_is_thawed_is_what_the_optimizer_holds(backbone: str, frozen: Frozen, trained: set[str]) -> None:
    some = network(backbone)
    optimizer = thaw(some, frozen, RATES, 0.01)
    groups = layer_groups(some)
    expected = {name for group in trained for name in groups[group]}
    assert {name for name, parameter in some.named_parameters() if parameter.requires_grad} == expected
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in some.named_parameters() if name in expected}
    assert {group["layer_group"]: group["lr"] for group in optimizer.param_groups} == {
        group: RATES[group] for group in trained
    }


def test_a_frozen_body_needs_a_rate_for_the_head_alone() -> None:
    optimizer = thaw(network(), "body", {"head": 0.1}, 0.01)
    assert {group["layer_group"] for group in optimizer.param_groups} == {"head"}


def test_thawing_again_thaws_what_was_frozen() -> None:
    some = network()
    thaw(some, "body", RATES, 0.01)
    thaw(some, "none", RATES, 0.01)
    assert all(parameter.requires_grad for parameter in some.parameters())


@pytest.mark.parametrize(("frozen", "trained"), [("body", {"head"}), ("early", {"late", "head"})])
def test_above_a_cut_in_front_of_the_late_group_the_same_is_thawed_as_in_the_whole_network(
    frozen: Frozen, trained: set[str]
) -> None:
    some, groups = network(), layer_groups(network())
    rates = {group: RATES[group] for group in trained}
    above, optimizer = thaw_above(some, "late", 32, frozen, rates, 0.01)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    wanted = {name for group in trained for name in groups[group]}
    assert held == {id(parameter) for name, parameter in some.named_parameters() if name in wanted}
    assert held == {id(parameter) for parameter in above.parameters() if parameter.requires_grad}
    assert {group["layer_group"]: group["lr"] for group in optimizer.param_groups} == rates


def test_above_a_cut_in_front_of_the_head_is_the_head_with_its_own_optimizer() -> None:
    some = network()
    above, optimizer = thaw_above(some, "head", 32, "body", {"head": 0.2}, 0.01)
    assert above is some.head
    own = head_optimizer(some.head, 0.2, 0.01)
    assert optimizer.state_dict()["param_groups"] == own.state_dict()["param_groups"]


def test_nothing_is_trained_on_what_is_stored_above_it() -> None:
    with pytest.raises(AssertionError, match="below the cut"):
        thaw_above(network(), "late", 32, "none", RATES, 0.01)


def test_a_heads_optimizer_holds_the_head_and_nothing_else() -> None:
    some = network()
    optimizer = head_optimizer(some.head, 0.2, 0.01)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in some.head.parameters()}
    assert {(group["layer_group"], group["lr"], group["initial_lr"]) for group in optimizer.param_groups} == {
        ("head", 0.2, 0.2)
    }
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}
