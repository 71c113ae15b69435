"""Layers of the body that look at the batch as a whole see the batch of all processes: random masks, and BatchNorm by
the batch's statistics."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode


class AsOneBatch(TorchFunctionMode):
    """A block in which `positions` of a batch of `count` pictures are computed, the others by other processes.

    Dropout, and layers that skip whole pictures (drop path), draw for all pictures and take their part, so that all
    processes use as many random numbers as one would. BatchNorm in train mode normalises by all pictures, and its
    running statistics follow all of them.
    """

    def __init__(self, positions: Tensor, count: int) -> None:
        super().__init__()
        self._positions, self._count = positions, count

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `function`, or its counterpart for the whole batch."""
        named = kwargs or {}
        if function is F.batch_norm:
            return _batch_norm(*args, **named)
        if function is torch.Tensor.bernoulli_ and self._is_of_batch(args[0]):
            tensor = args[0]
            return tensor.copy_(self._for_all(tensor).bernoulli_(*args[1:], **named)[self._positions])
        if function is F.dropout:
            return self._dropout(*args, **named)
        return function(*args, **named)

    def _dropout(self, inputs: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p or not self._is_of_batch(inputs):
            return F.dropout(inputs, p, training, inplace)
        kept = self._for_all(inputs).bernoulli_(1 - p)[self._positions]
        return inputs * kept.div_(1 - p) if p < 1 else inputs * kept

    def _is_of_batch(self, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and len(tensor) == len(self._positions)

    def _for_all(self, tensor: Tensor) -> Tensor:
        return torch.empty(self._count, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)


def _batch_norm(
    inputs: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    **numbers: float,
) -> Tensor:
    """As `F.batch_norm`, in train mode of the pictures of all processes; `numbers` are its momentum and eps."""
    running = running_mean, running_var
    if not training:
        return F.batch_norm(inputs, *running, weight, bias, training, numbers["momentum"], numbers["eps"])
    momentum, eps = numbers["momentum"], numbers["eps"]
    if inputs.is_cuda:
        group = dist.group.WORLD, dist.get_world_size()
        normed: Tensor = SyncBatchNorm.apply(inputs, weight, bias, *running, eps, momentum, *group)
        return normed
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    count = _Summed.apply(inputs.new_tensor([float(inputs.numel() // inputs.shape[1])]))
    mean = _Summed.apply(inputs.sum(axes)) / count
    centred = inputs - mean.view(shape)
    variance = _Summed.apply(centred.square().sum(axes)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    scaled: Tensor = centred * (variance + eps).rsqrt().view(shape)
    scaled = scaled if weight is None else scaled * weight.view(shape)
    return scaled if bias is None else scaled + bias.view(shape)


class _Summed(torch.autograd.Function):
    """The sum over all processes, each of which has the gradient of its own part of what follows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """The sum."""
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradients' sum."""
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed
