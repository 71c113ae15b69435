"""A moving average of the weights over the steps of a phase, which is kept beside them and not trained on.

Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging".
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.training.step import Step, StepLoss

STEPS_TO_SETTLE = 10  # at first less is kept, so that where training started is soon forgotten


class MovingAverage:
    """The average of all numbers in a state, which training changes in place, on their device, with a share of `decay`
    kept at each step; of the first `steps` it was taken before."""

    def __init__(self, state: Mapping[str, Tensor], decay: float, steps: int = 0) -> None:
        self._whole, self._decay, self._steps = state, decay, steps
        self._live = {name: one.detach() for name, one in state.items() if one.is_floating_point()}
        self.state = {name: tensor.clone() for name, tensor in self._live.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the average that was saved."""
        for name, tensor in state.items():
            self.state[name].copy_(tensor)

    def update(self) -> None:
        """Let the weights enter the average; waits for no device."""
        kept = min(self._decay, (1 + self._steps) / (STEPS_TO_SETTLE + self._steps))
        torch._foreach_lerp_(list(self.state.values()), list(self._live.values()), 1 - kept)
        self._steps += 1

    def whole_state(self) -> dict[str, Tensor]:
        """The state with the average in it, on the CPU; counters are those of now."""
        whole = {**self._whole, **self.state}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in whole.items()}

    def take_over(self) -> None:
        """Put the average in the place of what was averaged."""
        for name, tensor in self.state.items():
            self._live[name].copy_(tensor)


def averaged_steps(step: Step, average: MovingAverage) -> Step:
    """The same steps, after each of which the weights enter the average."""

    def averaged(inputs: Tensor, targets: Tensor, weights: Tensor | None) -> StepLoss:
        losses = step(inputs, targets, weights)
        average.update()
        return losses

    return averaged
