"""A linear layer of many heads behind a BatchNorm and dropout whose inputs they share, with its gradient.

((inputs × scale + shift) × mask) times the weights: scale, shift and weights are each head's own, inputs and mask are
those of its group. Where the weights are smaller than the inputs, scale and shift are multiplied into them, so that the
heads of a group are one matrix product over their inputs; else each head gets inputs of its own. The gradient is
written out since autograd's would copy it together from the groups, which takes longer than to compute it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The heads `first` to before `last`, which share the seed, number `seed` of the stack's, and the `dropout`."""

    seed: int
    dropout: float
    first: int
    last: int

    @property
    def heads(self) -> slice:
        """Where its heads lie in a stack."""
        return slice(self.first, self.last)


Masks = Sequence[Tensor | None]


def shared_layer(
    inputs: Tensor, groups: Sequence[Group], masks: Masks, scale: Tensor, shift: Tensor, weight: Tensor
) -> Tensor:
    """(pictures, heads, outputs) for `inputs` (pictures, seeds, inputs), and for each group a mask (pictures, inputs)
    or None; `scale` and `shift` are (heads, inputs), `weight` is (heads, outputs, inputs)."""
    outputs: Tensor = _SharedLayer.apply(inputs, groups, masks, scale, shift, weight)
    return outputs


def folds(outputs: int, pictures: int) -> bool:
    """Whether the weights of a linear layer are smaller than its inputs, and take scale and shift in."""
    return outputs <= pictures


class _SharedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, groups: Sequence[Group], masks: Masks, scale: Tensor, shift: Tensor, weight: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inputs, scale, shift, weight)
        ctx.groups, ctx.masks = groups, masks
        layer = _folded if folds(weight.shape[1], len(inputs)) else _unfolded
        outputs = [
            layer(inputs[:, group.seed], mask, scale[group.heads], shift[group.heads], weight[group.heads])
            for group, mask in zip(groups, masks, strict=True)
        ]
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, scale, shift, weight = ctx.saved_tensors
        (of_outputs,) = gradients
        ours = scale, shift, weight
        found = [torch.empty_like(one) for one in ours]
        layer = _folded_gradient if folds(weight.shape[1], len(inputs)) else _unfolded_gradient
        for group, mask in zip(ctx.groups, ctx.masks, strict=True):
            heads = group.heads
            own = [one[heads] for one in ours]
            layer(of_outputs[:, heads], inputs[:, group.seed], mask, *own, *[one[heads] for one in found])
        return None, None, None, *found


def _folded(inputs: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    heads, outputs, _ = weight.shape
    scaled = (weight * scale[:, None]).flatten(0, 1)
    if mask is None:
        shifted = torch.bmm(weight, shift[:, :, None]).flatten()
        return torch.addmm(shifted, inputs, scaled.T).view(-1, heads, outputs)
    shifted = (weight * shift[:, None]).flatten(0, 1)
    return torch.addmm(mask @ shifted.T, inputs * mask, scaled.T).view(-1, heads, outputs)


def _folded_gradient(
    of_outputs: Tensor, inputs: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor, weight: Tensor,
    of_scale: Tensor, of_shift: Tensor, of_weight: Tensor,
) -> None:  # fmt: skip
    """Writes the last three."""
    flat = of_outputs.flatten(1).T
    of_scaled = (flat @ (inputs if mask is None else inputs * mask)).view_as(weight)
    torch.mul(of_scaled, scale[:, None], out=of_weight)
    torch.sum(of_scaled.mul_(weight), dim=1, out=of_scale)
    if mask is None:
        sums = of_outputs.sum(0)
        of_weight.addcmul_(sums[:, :, None], shift[:, None])
        torch.sum(weight * sums[:, :, None], dim=1, out=of_shift)
        return
    of_shifted = (flat @ mask).view_as(weight)
    of_weight.addcmul_(of_shifted, shift[:, None])
    torch.sum(of_shifted.mul_(weight), dim=1, out=of_shift)


def _unfolded(inputs: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    return torch.bmm(_own_inputs(inputs, mask, scale, shift), weight.transpose(1, 2)).transpose(0, 1)


def _unfolded_gradient(
    of_outputs: Tensor, inputs: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor, weight: Tensor,
    of_scale: Tensor, of_shift: Tensor, of_weight: Tensor,
) -> None:  # fmt: skip
    """Writes the last three."""
    by_head = of_outputs.transpose(0, 1)
    torch.bmm(by_head.transpose(1, 2), _own_inputs(inputs, mask, scale, shift), out=of_weight)
    of_inputs = torch.bmm(by_head, weight)
    if mask is not None:
        of_inputs.mul_(mask)
    torch.sum(of_inputs, dim=1, out=of_shift)
    torch.sum(of_inputs.mul_(inputs), dim=1, out=of_scale)


def _own_inputs(inputs: Tensor, mask: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    """(heads, pictures, inputs): scaled, shifted and masked."""
    own = torch.addcmul(shift[:, None], inputs, scale[:, None])
    return own if mask is None else own.mul_(mask)
