"""AdamW over stacked heads: one rate and one weight decay for each."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import AdamW

from pipeline.optim import BETAS


class StackedAdamW:
    """AdamW for parameters whose first dimension is the head, with `rates` and `decays` by head.

    torch's fused step takes one rate for all. So it moves `steps` at the rate 1, with a decay that first forgets the
    step before, and each head is moved by its step times its own rate. Decay leaves out norms and biases, as
    `optim.build_optimizer` does.
    """

    def __init__(self, parameters: Sequence[Tensor], rates: Sequence[float], decays: Sequence[float]) -> None:
        self.parameters = list(parameters)
        like = self.parameters[0]
        self.rates = torch.tensor(rates, dtype=like.dtype, device=like.device)
        self.decays = torch.tensor(decays, dtype=like.dtype, device=like.device)
        self.steps = [torch.zeros_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._direction = AdamW(self.steps, lr=1.0, betas=BETAS, weight_decay=1.0, fused=True)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Move every head along its gradient at its rate × `factor`; the gradients go."""
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            step.grad, parameter.grad = parameter.grad, None
        self._direction.step()
        rates = self.rates * factor
        kept = 1 - rates * self.decays
        for parameter, step in zip(self.parameters, self.steps, strict=True):
            by_head = (-1, *[1] * (parameter.ndim - 1))
            if parameter.ndim > 2:  # a head's matrix; its norms and biases are vectors
                parameter.mul_(kept.view(by_head))
            parameter.addcmul_(step, rates.view(by_head))
            step.grad = None
