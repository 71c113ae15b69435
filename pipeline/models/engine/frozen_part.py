"""Training above a part that is frozen: ONNX Runtime computes that part, and torch the rest, with its gradients."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.data.decode import Pixels
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.cut import Above, Cut, cut_network
from pipeline.models.engine.passes import frozen_below, pays
from pipeline.models.network import Network
from pipeline.recipe.fields import Frozen
from pipeline.system.errors import UserError

# Where a network is cut of which these layer groups are frozen.
CUTS: dict[Frozen, Cut] = {"early": "late", "body": "head"}


class TrainedAbove(nn.Module):
    """Images to logits: the frozen part by `below`, the rest by `above`, which is trained."""

    def __init__(self, below: Callable[[Tensor], Tensor], above: nn.Module) -> None:
        super().__init__()
        self.above = above
        self._below = below

    def below(self, images: Tensor) -> Tensor:
        """The activations of the frozen part."""
        with torch.no_grad():
            return self._below(images)

    def last_activations(self, images: Tensor) -> Tensor:
        """The head's input, where more than the head lies above the frozen part."""
        assert isinstance(self.above, Above)
        return self.above.last_activations(self.below(images))

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.above(self.below(images))
        return logits


def training_module(network: Network, checkpoint: Checkpoint, frozen: Frozen, pixels: Pixels, passes: int) -> nn.Module:
    """What is trained on `passes` of pictures of `pixels`: the network, or, where layer groups are `frozen` and ONNX
    Runtime computes them faster, a module that has them computed by it.

    Its frozen layers are in eval mode, as training keeps them, and augmentation comes before them. What it does follows
    from the arguments alone, so that a training that resumes goes on in the same way.
    """
    if frozen == "none" or not pays(passes, checkpoint.image_px, network.mean.device):
        return network
    try:
        halves = cut_network(network, CUTS[frozen], checkpoint.image_px)
    except UserError:  # it cannot be cut
        return network
    halves = frozen_below(network, checkpoint, halves, pixels, passes)
    return TrainedAbove(halves.below, halves.above) if halves.engine else network
