"""The optimizer: freezes layer groups, and gives the others their rates and weight decay."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from pipeline.models.cut import Cut, cut_network
from pipeline.models.layer_groups import Frozen, freeze, layer_groups
from pipeline.models.network import Network

# fastai's second moment: 0.99 forgets faster than Adam's 0.999, which suits runs of a few hundred steps.
BETAS = (0.9, 0.99)


def build_optimizer(
    module: nn.Module, groups: Mapping[str, Sequence[str]], rates: Mapping[str, float], weight_decay: float
) -> Optimizer:
    """AdamW over the module's trainable parameters, with `rates` by layer group.

    Decay is decoupled (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization") and leaves out norms, biases,
    and the parameters that timm exempts, such as position embeddings. Every optimizer group holds its `layer_group` and
    its `initial_lr`.
    """
    undecayed = _undecayed(module)
    group_of = {name: group for group, names in groups.items() for name in names}
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members.setdefault((group_of[name], parameter.ndim > 1 and name not in undecayed), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "layer_group": group,
                "lr": rates[group],
                "initial_lr": rates[group],
                "weight_decay": weight_decay if decays else 0.0,
            }
            for (group, decays), parameters in members.items()
        ],
        betas=BETAS,
        fused=True,
    )


def _undecayed(module: nn.Module) -> set[str]:
    """The names of the parameters in `module` that a backbone of timm exempts from decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        if callable(exempt := getattr(inner, "no_weight_decay", None))
        for name in exempt()
    }


def set_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Set every rate to `initial_lr` × `factor`; gives the rates by layer group."""
    for group in optimizer.param_groups:
        rate = group["initial_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a captured step reads it there
        else:
            group["lr"] = rate
    return rates_at(optimizer, factor)


def rates_at(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """The rates by layer group that `set_rates` gives for `factor`."""
    return {group["layer_group"]: group["initial_lr"] * factor for group in optimizer.param_groups}


def thaw(network: Network, frozen: Frozen, rates: Mapping[str, float], weight_decay: float) -> Optimizer:
    """Freeze these layer groups and thaw the others; gives an optimizer over the thawed ones, with `rates` by group."""
    freeze(network, frozen)
    return build_optimizer(network, layer_groups(network), rates, weight_decay)


def thaw_above(
    network: Network, cut: Cut, image_px: int, frozen: Frozen, rates: Mapping[str, float], weight_decay: float
) -> tuple[nn.Module, Optimizer]:
    """(the module from activations stored at `cut` to logits, `thaw`'s optimizer over it), for training without the
    layers below, which have to be frozen. UserError if the network cannot be cut there."""
    if cut == "head":
        return network.head, head_optimizer(network.head, rates["head"], weight_decay)
    assert frozen != "none", "the early group lies below the cut"
    return cut_network(network, cut, image_px).above, thaw(network, frozen, rates, weight_decay)


def head_optimizer(head: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """An optimizer over a head that is trained on stored activations."""
    return build_optimizer(head, {"head": [name for name, _ in head.named_parameters()]}, {"head": lr}, weight_decay)
