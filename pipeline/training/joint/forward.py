"""A network of which each process computes the body for its share of a batch, and all the head for all of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.models.cut import Above
from pipeline.models.engine.frozen_part import TrainedAbove
from pipeline.models.network import Network
from pipeline.ranks.deal import Deal
from pipeline.ranks.exchange import gather_rows, sum_gradients
from pipeline.system.errors import UserError
from pipeline.training.compiled import CompiledNetwork
from pipeline.training.joint.whole_batch import AsOneBatch


class SharedForward:
    """Images of a process's share to the logits of the whole batch.

    The body's last activations are gathered, and every process computes the head and the loss of all pictures: a tiny
    part, by which BatchNorm and dropout of the head, smoothing, weights, and the loss that is logged are what they are
    in one process. The gradient of the body is that of the share, and `sum_gradients` adds them up.
    """

    def __init__(self, module: nn.Module, deal: Deal, compiled: CompiledNetwork | None = None) -> None:
        self._activations, self._head = _halves(module)
        if compiled is not None:
            self._activations = compiled.activations
        self._deal = deal
        self._of_head = {id(parameter) for parameter in self._head.parameters()}
        of_head = set(self._head.modules())
        self._looks_at_batch = any(
            isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training
            for part in module.modules()
            if part not in of_head
        )

    def parts(self, inputs: Tensor, count: int) -> list[Callable[[], Tensor]]:
        """For each part that a batch of `count` pictures goes through the network in, a function that gives its logits
        from this process's share of the batch, `inputs`."""
        parts, first = [], 0
        for sizes in self._deal.sizes(count):
            own = sizes[self._deal.number]
            images = inputs[first : first + own] if own else inputs[:1]
            parts.append(self._part(images, sizes))
            first += own
        return parts

    def sum_gradients(self, optimizer: Optimizer) -> None:
        """Let all processes have the gradients of the whole batch. Those of the head, which are alike but for the order
        in which a GPU adds up, become the same."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        of_head = [parameter.grad for parameter in parameters if id(parameter) in self._of_head]
        if of_head:
            torch._foreach_div_(of_head, self._deal.processes)
        sum_gradients([parameter.grad for parameter in parameters])

    def _part(self, images: Tensor, sizes: Sequence[int]) -> Callable[[], Tensor]:
        number = self._deal.number
        if self._looks_at_batch and min(sizes) == 0:
            raise UserError(
                f"A batch of {sum(sizes)} pictures is too small for {len(sizes)} processes where batchnorm is batch; "
                "raise batch_size, or start fewer processes."
            )
        first = sum(sizes[:number])
        positions = torch.arange(first, first + len(images), device=images.device).clamp_(max=sum(sizes) - 1)

        def logits() -> Tensor:
            with AsOneBatch(positions, sum(sizes)):
                activations = self._activations(images)
            whole: Tensor = self._head(gather_rows(activations, sizes, number))
            return whole

        return logits


def _halves(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """(From images to the body's last activations, the head)."""
    if isinstance(module, Network):
        return module.activations, module.head
    assert isinstance(module, TrainedAbove), "only pictures are trained on by several processes"
    if isinstance(module.above, Above):
        return module.last_activations, module.above.network.head
    return module.below, module.above
