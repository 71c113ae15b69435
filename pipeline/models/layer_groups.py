"""The layer groups early, late and head, and freezing them, BatchNorm and dropout included."""

from typing import Literal, TypeAlias

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.models.network import Network
from pipeline.recipe.fields import FROZEN_GROUPS, GROUPS, Frozen
from pipeline.system.errors import UserError

# Whose BatchNorm keeps its running statistics while it is trained: nobody's, the body's, or the head's too.
FixedStatistics: TypeAlias = Literal["none", "body", "all"]


def layer_groups(network: Network) -> dict[str, list[str]]:
    """The names of the network's parameters by layer group; each is in exactly one.

    timm's own coarse grouping orders the body from the input up; its upper half, rounded down, is "late", which
    for a ResNet is layer3 and layer4, as in fastai. UserError if timm does not group this backbone.
    """
    matcher = getattr(network.body, "group_matcher", None)
    if matcher is None:
        raise UserError("timm has no layer groups for this backbone; choose another model.backbone.")
    grouped = group_parameters(network.body, matcher(coarse=True), reverse=False)
    numbers = sorted(grouped)
    if len(numbers) < 2:
        raise UserError("timm sees one layer group alone in this backbone; choose another model.backbone.")
    late = set(numbers[len(numbers) - len(numbers) // 2 :])
    of_body = {name: "late" if number in late else "early" for number in numbers for name in grouped[number]}
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, _ in network.named_parameters():
        part, _, inner = name.partition(".")
        groups["head" if part == "head" else of_body[inner]].append(name)
    return groups


def freeze(network: Network, frozen: Frozen) -> None:
    """Freeze the parameters of these layer groups, and make all others trainable."""
    groups = layer_groups(network)
    frozen_names = {name for group in FROZEN_GROUPS[frozen] for name in groups[group]}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen_names)


def training_mode(module: nn.Module, fixed_statistics: FixedStatistics = "none") -> None:
    """Set eval mode for every module whose parameters are all frozen, and train mode for the others.

    A frozen BatchNorm in train mode would normalise by the batch and move its running statistics, so that the head
    would get other features than those stored. With `fixed_statistics` "body" every BatchNorm of the body of a Network,
    which `module` is or contains, stays in eval mode, thawed ones too: their weights are trained, their statistics are
    kept. "all" is for a head that has been trained: those of augmented pictures, which its BatchNorm would learn, are
    not those of the pictures that it is to judge.
    """
    _set_modes(module)
    networks = [part for part in module.modules() if isinstance(part, Network)]
    fixed: dict[FixedStatistics, list[nn.Module]] = {
        "none": [], "body": [network.body for network in networks], "all": [module]
    }  # fmt: skip
    for inner in (inner for part in fixed[fixed_statistics] for inner in part.modules()):
        if isinstance(inner, _BatchNorm):
            inner.eval()


def _set_modes(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    module.training = True
    for child in module.children():
        _set_modes(child)
