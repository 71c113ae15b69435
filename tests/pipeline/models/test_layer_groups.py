from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.models.body import Body, build_body
from pipeline.models.layer_groups import FixedStatistics, freeze, layer_groups, training_mode
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.system.errors import UserError

BACKBONES = ["test_resnet", "test_efficientnet", "test_vit", "tf_efficientnet_lite0"]


def build(backbone: str = "test_resnet") -> Network:
    torch.manual_seed(0)
    return Network(build_body(backbone, 32), 3, 8, 0.5)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def norms(module: nn.Module, prefix: str) -> dict[str, nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return {n: m for n, m in module.named_modules() if n.startswith(prefix) and isinstance(m, kinds)}


def one_training_step(network: Network, fixed_statistics: FixedStatistics = "none") -> None:
    training_mode(network, fixed_statistics)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    nn.functional.cross_entropy(network(images()), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_is_in_exactly_one_group(backbone: str) -> None:
    network = build(backbone)
    groups = layer_groups(network)
    assert list(groups) == ["early", "late", "head"]
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert all(groups.values())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_head_group_is_the_head_and_the_others_are_the_body(backbone: str) -> None:
    groups = layer_groups(build(backbone))
    assert all(name.startswith("head.") for name in groups["head"])
    assert all(name.startswith("body.") for name in groups["early"] + groups["late"])


@pytest.mark.parametrize("backbone", ["test_resnet", "resnet18"])
def test_the_late_group_of_a_resnet_is_layer3_and_layer4(backbone: str) -> None:
    groups = layer_groups(build(backbone))
    assert {name.split(".")[1] for name in groups["late"]} == {"layer3", "layer4"}
    stem = {name.split(".")[1] for name in groups["early"]} - {"layer1", "layer2"}
    assert stem <= {"conv1", "bn1"}
    assert {"layer1", "layer2"} <= {name.split(".")[1] for name in groups["early"]}


def test_the_early_group_of_lite0_is_its_stem_and_first_three_stages() -> None:
    groups = layer_groups(build("tf_efficientnet_lite0"))
    stages = {group: {name.split(".")[2] for name in groups[group] if ".blocks." in name} for group in groups}
    assert stages["early"] == {"0", "1", "2"}
    assert stages["late"] == {"3", "4", "5", "6"}
    assert "body.conv_stem.weight" in groups["early"]
    assert "body.conv_head.weight" in groups["late"]


def test_the_early_group_of_a_vit_has_its_patches_positions_and_first_blocks() -> None:
    groups = layer_groups(build("test_vit"))
    assert {"body.cls_token", "body.pos_embed", "body.patch_embed.proj.weight"} <= set(groups["early"])
    assert {name.split(".")[2] for name in groups["late"] if ".blocks." in name} == {"3", "4", "5"}
    assert "body.norm.weight" in groups["late"]


@pytest.mark.parametrize("matcher", [None, lambda coarse: {"all": r"."}], ids=["no groups", "one group"])
def test_a_backbone_that_timm_does_not_divide_is_refused(matcher: Callable[[bool], dict[str, str]] | None) -> None:
    module = nn.Linear(4, 2)
    if matcher is not None:
        module.group_matcher = matcher
    network = Network(Body(module, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 2, 0, 0.0)
    with pytest.raises(UserError, match=r"choose another model\.backbone"):
        layer_groups(network)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("frozen", "still"), [("none", []), ("early", ["early"]), ("body", ["early", "late"])])
def test_freezing_stills_the_groups_named_and_no_other(backbone: str, frozen: Frozen, still: list[str]) -> None:
    network = build(backbone)
    freeze(network, frozen)
    groups = layer_groups(network)
    expected = {name for group in still for name in groups[group]}
    assert {name for name, parameter in network.named_parameters() if not parameter.requires_grad} == expected


def test_freezing_less_thaws_what_was_frozen_before() -> None:
    network = build()
    freeze(network, "body")
    freeze(network, "none")
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_frozen_body_stays_in_eval_mode_and_the_head_trains() -> None:
    network = build("tf_efficientnet_lite0").train()
    freeze(network, "body")
    training_mode(network)
    assert not any(module.training for module in network.body.modules())
    assert all(module.training for module in network.head.modules())


def test_a_frozen_bodys_dropout_stays_in_eval_mode() -> None:
    network = build("test_vit").train()
    freeze(network, "body")
    training_mode(network)
    dropouts = [module for module in network.body.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert not any(module.training for module in dropouts)


def test_an_unfrozen_network_is_in_train_mode_throughout() -> None:
    network = build().eval()
    freeze(network, "none")
    training_mode(network)
    assert all(module.training for module in network.modules())


def test_a_thawed_body_goes_back_to_train_mode() -> None:
    network = build()
    freeze(network, "body")
    training_mode(network)
    freeze(network, "none")
    training_mode(network)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_with_the_early_group_frozen_its_norms_alone_are_in_eval_mode(backbone: str) -> None:
    network = build(backbone).train()
    freeze(network, "early")
    training_mode(network)
    early = set(layer_groups(network)["early"])
    for name, norm in norms(network, "").items():
        assert norm.training == (f"{name}.weight" not in early), name


def test_a_training_step_with_a_frozen_body_moves_the_head_alone() -> None:
    network = build()
    freeze(network, "body")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    one_training_step(network)
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith("body."))
    assert not torch.equal(before["head.4.running_mean"], after["head.4.running_mean"])
    assert not torch.equal(before["head.6.weight"], after["head.6.weight"])


def test_a_training_step_moves_the_running_statistics_of_unfrozen_norms_alone() -> None:
    network = build()
    freeze(network, "early")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    one_training_step(network)
    early = set(layer_groups(network)["early"])
    after = network.state_dict()
    moved = {
        name: not torch.equal(before[f"{name}.running_mean"], after[f"{name}.running_mean"])
        for name in norms(network, "")
    }
    counted = {name: int(after[f"{name}.num_batches_tracked"]) for name in norms(network, "")}
    assert moved == {name: f"{name}.weight" not in early for name in moved}
    assert counted == {name: int(moved[name]) for name in moved}
    assert len(set(moved.values())) == 2


def test_a_frozen_body_gives_the_same_activations_in_training_as_in_eval() -> None:
    network = build()
    freeze(network, "body")
    training_mode(network)
    while_training = network.activations(images())
    network.eval()
    assert torch.equal(while_training, network.activations(images()))


@pytest.mark.parametrize("backbone", ["test_resnet", "tf_efficientnet_lite0"])
def test_with_fixed_statistics_the_bodys_norms_alone_are_in_eval_mode(backbone: str) -> None:
    network = build(backbone).eval()
    freeze(network, "none")
    training_mode(network, fixed_statistics="body")
    of_body = {inner for norm in norms(network, "body.").values() for inner in norm.modules()}
    assert of_body
    for name, module in network.named_modules():
        assert module.training == (module not in of_body), name


def test_of_a_trained_network_all_norms_are_in_eval_mode_and_nothing_else_is() -> None:
    network = build().eval()
    freeze(network, "none")
    training_mode(network, fixed_statistics="all")
    of_norms = {inner for norm in norms(network, "").values() for inner in norm.modules()}
    assert any(norm in of_norms for norm in network.head)
    for name, module in network.named_modules():
        assert module.training == (module not in of_norms), name


def test_with_fixed_statistics_a_step_trains_the_norms_weights_and_keeps_their_statistics() -> None:
    network = build("test_efficientnet")
    freeze(network, "none")
    nn.init.normal_(network.head[-1].weight)  # at zero it would pass no gradient on to the body
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    one_training_step(network, fixed_statistics="body")
    after = network.state_dict()
    for name in norms(network, "body."):
        assert not torch.equal(before[f"{name}.weight"], after[f"{name}.weight"]), name
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(before[f"{name}.{statistic}"], after[f"{name}.{statistic}"]), name
    assert not torch.equal(before["head.0.running_mean"], after["head.0.running_mean"])


def test_without_fixed_statistics_a_thawed_network_goes_back_to_learning_them() -> None:
    network = build()
    freeze(network, "none")
    training_mode(network, fixed_statistics="body")
    training_mode(network)
    assert all(module.training for module in network.modules())
