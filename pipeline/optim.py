"""Parameter groups and rates as a visible list."""

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import AdamW, Optimizer

# fastai's second moment: 0.99 forgets faster than Adam's 0.999, which suits runs of a few hundred steps.
BETAS = (0.9, 0.99)


def build_optimizer(
    module: nn.Module, groups: Mapping[str, Sequence[str]], rates: Mapping[str, float], weight_decay: float
) -> Optimizer:
    """AdamW over the module's trainable parameters, with `rates` by layer group.

    Decay is decoupled (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization") and leaves out norms,
    biases, and what timm exempts, such as position embeddings. Every optimizer group carries its `layer_group` and
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
    """The names of parameters below `module` that a backbone of timm's wants without decay."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules()
        if callable(exempt := getattr(inner, "no_weight_decay", None))
        for name in exempt()
    }


def set_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Give every group `initial_lr` × `factor`; the rates by layer group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return rates_at(optimizer, factor)


def rates_at(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """The rates by layer group that `set_rates` gives for `factor`."""
    return {group["layer_group"]: group["initial_lr"] * factor for group in optimizer.param_groups}
