"""The optimizer: freezes layer groups, and gives the others their rates, momentum and weight decay."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.models.cut import Cut, cut_network
from pipeline.models.layer_groups import freeze, layer_groups
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.recipe.training_sections import TrainingOptions

# fastai's second moment: 0.99 forgets faster than Adam's 0.999, which suits runs of a few hundred steps.
BETAS = (0.9, 0.99)
# Momentum at the lowest and at the highest rate, where it is cycled, as in fastai's one-cycle policy (Smith 2018).
HIGH_MOMENTUM, LOW_MOMENTUM = 0.95, 0.85
AS_EVER = TrainingOptions()


def build_optimizer(
    module: nn.Module,
    groups: Mapping[str, Sequence[str]],
    rates: Mapping[str, float],
    weight_decay: float,
    options: TrainingOptions = AS_EVER,
) -> Optimizer:
    """AdamW over the module's trainable parameters, or SGD, with `rates` by layer group.

    AdamW's decay is decoupled (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"). It leaves out norms,
    biases, and the parameters that timm exempts, such as position embeddings. Every optimizer group holds its
    `layer_group`, its `initial_lr`, and whether its momentum `is_cycled`.
    """
    undecayed = _undecayed(module)
    group_of = {name: group for group, names in groups.items() for name in names}
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault((group_of[name], parameter.ndim > 1 and name not in undecayed), []).append(parameter)
    parameter_groups = [
        {
            "params": parameters,
            "layer_group": group,
            "lr": rates[group],
            "initial_lr": rates[group],
            "is_cycled": options.momentum == "cycled",
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (group, decays), parameters in members.items()
    ]
    if options.optimizer == "sgd":
        return SGD(parameter_groups, momentum=BETAS[0], fused=True)
    return AdamW(parameter_groups, betas=BETAS, fused=True)


def _undecayed(module: nn.Module) -> set[str]:
    """The names of the parameters in `module` that a backbone of timm exempts from decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        if callable(exempt := getattr(inner, "no_weight_decay", None))
        for name in exempt()
    }


def set_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Set every rate to `initial_lr` × `factor`, and momentum that is cycled the lower the higher the rates; gives the
    rates by layer group."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a captured step reads it there
        else:
            group["lr"] = rate
        if group.get("is_cycled"):
            _set_momentum(group, cycled_momentum(factor))
    return rates_at(optimizer, factor)


def rates_at(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """The rates by layer group that `set_rates` gives for `factor`."""
    return {group["layer_group"]: group["initial_lr"] * factor for group in optimizer.param_groups}


def cycled_momentum(factor: float) -> float:
    """Momentum that is cycled, where rates are the top ones times `factor`."""
    return HIGH_MOMENTUM - (HIGH_MOMENTUM - LOW_MOMENTUM) * factor


def _set_momentum(group: dict[str, Any], momentum: float) -> None:
    if "momentum" in group:
        group["momentum"] = momentum
    else:
        group["betas"] = (momentum, group["betas"][1])


def thaw(
    network: Network,
    frozen: Frozen,
    rates: Mapping[str, float],
    weight_decay: float,
    options: TrainingOptions = AS_EVER,
) -> Optimizer:
    """Freeze these layer groups and thaw the others; gives an optimizer over the thawed ones, with `rates` by group."""
    freeze(network, frozen)
    return build_optimizer(network, layer_groups(network), rates, weight_decay, options)


def thaw_above(
    network: Network,
    cut: Cut,
    image_px: int,
    frozen: Frozen,
    rates: Mapping[str, float],
    weight_decay: float,
    options: TrainingOptions = AS_EVER,
) -> tuple[nn.Module, Optimizer]:
    """(the module from activations stored at `cut` to logits, `thaw`'s optimizer over it), for training without the
    layers below, which have to be frozen. UserError if the network cannot be cut there."""
    if cut == "head":
        return network.head, head_optimizer(network.head, rates["head"], weight_decay, options)
    assert frozen != "none", "the early group lies below the cut"
    return cut_network(network, cut, image_px).above, thaw(network, frozen, rates, weight_decay, options)


def head_optimizer(head: nn.Module, lr: float, weight_decay: float, options: TrainingOptions = AS_EVER) -> Optimizer:
    """An optimizer over a head that is trained on stored activations."""
    groups = {"head": [name for name, _ in head.named_parameters()]}
    return build_optimizer(head, groups, {"head": lr}, weight_decay, options)
