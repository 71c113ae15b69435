"""AdamW and SGD for heads that are stacked, each with a rate and a decay of its own; and the clipping of gradients.

Norms and biases do not decay, as in `optim.build_optimizer`. The parameters' first dimension is the head; a head's
matrix is what has more than two.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.optim import AdamW

from pipeline.recipe.training_sections import TrainingOptions
from pipeline.training.optim import AS_EVER, BETAS, cycled_momentum


def build_stacked_optimizer(
    parameters: Sequence[Tensor], rates: Sequence[float], decays: Sequence[float], options: TrainingOptions = AS_EVER
) -> "StackedOptimizer":
    """What `optim.build_optimizer` builds for a head, for a stack of them."""
    kind = StackedSGD if options.optimizer == "sgd" else StackedAdamW
    return kind(parameters, rates, decays, options.momentum == "cycled")


class StackedAdamW:
    """AdamW with `rates` and `decays` by head.

    torch's fused step takes one rate for all parameters. So it computes `steps` at the rate 1, with a decay of 1 that
    erases the step before, and each head is moved by its step times its own rate.
    """

    def __init__(
        self, parameters: Sequence[Tensor], rates: Sequence[float], decays: Sequence[float], is_cycled: bool = False
    ) -> None:
        self.parameters, self._is_cycled = list(parameters), is_cycled
        self.rates, self.decays = _by_head(self.parameters, rates), _by_head(self.parameters, decays)
        self.steps = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._direction = AdamW(self.steps, lr=1.0, betas=BETAS, weight_decay=1.0, fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move every head along its gradient at its rate × `factor`, and clear the gradients."""
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            step.grad, parameter.grad = parameter.grad, None
        if self._is_cycled:
            self._direction.param_groups[0]["betas"] = (cycled_momentum(factor), BETAS[1])
        self._direction.step()
        rates = self.rates * factor
        kept = 1 - rates * self.decays
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            if parameter.ndim > 2:
                parameter.mul_(_like(kept, parameter))
            parameter.addcmul_(step, _like(rates, parameter))
            step.grad = None


class StackedSGD:
    """SGD with momentum, and `rates` and `decays` by head; as torch's, it adds the decay to the gradient."""

    def __init__(
        self, parameters: Sequence[Tensor], rates: Sequence[float], decays: Sequence[float], is_cycled: bool = False
    ) -> None:
        self.parameters, self._is_cycled = list(parameters), is_cycled
        self.rates, self.decays = _by_head(self.parameters, rates), _by_head(self.parameters, decays)
        self.steps = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move every head along its gradient at its rate × `factor`, and clear the gradients."""
        momentum = cycled_momentum(factor) if self._is_cycled else BETAS[0]
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            assert parameter.grad is not None, "no gradient to descend along"
            step.mul_(momentum).add_(parameter.grad)
            if parameter.ndim > 2:
                step.addcmul_(parameter, _like(self.decays, parameter))
            parameter.addcmul_(step, _like(self.rates * -factor, parameter))
            parameter.grad = None


StackedOptimizer: TypeAlias = StackedAdamW | StackedSGD


@torch.no_grad()
def clip_each(parameters: Sequence[Tensor], norm: float) -> None:
    """Scale the gradients of each head down to this norm, as `clip_grad_norm_` does for a head alone."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    of_tensors = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients])
    shares = (norm / (of_tensors.norm(dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(_like(shares, gradient))


def _by_head(parameters: Sequence[Tensor], values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=parameters[0].dtype, device=parameters[0].device)


def _like(by_head: Tensor, parameter: Tensor) -> Tensor:
    """A number for each head, to go with all of its parameters."""
    return by_head.view(-1, *[1] * (parameter.ndim - 1))
