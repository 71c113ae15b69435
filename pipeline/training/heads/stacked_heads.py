"""Many heads of one shape as stacked tensors, and the linear layer that they share.

The layer computes ((inputs × scale + shift) × mask) times the weights: scale, shift and weights are each head's own,
inputs and mask are those of its group, which shares a seed and a dropout. Where the weights are smaller than the
inputs, scale and shift are multiplied into them, so that the heads of a group are one matrix product over their inputs;
else each head gets inputs of its own. The gradient is written out since autograd's would copy it together from the
groups, which takes longer than to compute it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.network import build_head, dropout_mask

# Numbers of 4 bytes that a parameter takes in training: itself, its gradient, AdamW's two moments and its step; and
# both products and their gradients where scale and shift are folded into the weights.
COPIES, COPIES_WHERE_FOLDED = 5, 9
# Numbers that an input of the first layer takes where each head has its own: scaled, masked, and their gradients.
COPIES_OF_INPUTS = 6
Masks: TypeAlias = Sequence[Tensor | None]


@dataclass(frozen=True)
class HeadShape:
    """A head from `width` activations to the logits of `classes`, with a hidden layer of `hidden` units; 0 is none."""

    width: int
    classes: int
    hidden: int


@dataclass(frozen=True)
class HeadGroup:
    """The heads from `first` to before `last`, which share a `dropout` and a seed: the one at index `seed` of the
    stack's."""

    seed: int
    dropout: float
    first: int
    last: int

    @property
    def heads(self) -> slice:
        """Which heads of the stack are in the group."""
        return slice(self.first, self.last)


class StackedHeads:
    """Heads of one shape, each with the weights that its own seed gives it.

    `parameters` are those of `build_head` by their names there, and `statistics` BatchNorm's running ones, with the
    heads stacked along the first dimension; the statistics of the inputs have the stack's `seeds` there instead, since
    they depend on the order of the pictures alone.
    """

    def __init__(self, shape: HeadShape, heads: Sequence[tuple[int, float]], device: torch.device) -> None:
        """For `heads`, (seed, dropout) of each, those that share both next to one another."""
        self.seeds = list(dict.fromkeys(seed for seed, _ in heads))
        self.groups, self.hidden = _groups(heads, self.seeds), shape.hidden
        self.seed_of = torch.tensor([self.seeds.index(seed) for seed, _ in heads], device=device)
        count = torch.tensor([sum(one == seed for one, _ in heads) for seed in self.seeds])
        assert self.seed_of.tolist() == sorted(self.seed_of.tolist()), "heads of one seed have to stand together"
        by_seed = [_state(shape, seed) for seed in self.seeds]
        self.parameters: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}
        for name in by_seed[0]:
            stacked = torch.stack([state[name] for state in by_seed])
            if "running" in name and name.startswith("0."):
                self.statistics[name] = stacked.to(device)
            elif "running" in name:
                self.statistics[name] = stacked.repeat_interleave(count, 0).to(device)
            else:
                self.parameters[name] = stacked.repeat_interleave(count, 0).to(device).requires_grad_()

    def __len__(self) -> int:
        return len(self.seed_of)

    def train(self, inputs: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Logits (pictures, heads, classes) in train mode for `inputs` (pictures, seeds, activations), a batch for each
        seed. Each group draws its dropout from its own generator, in the order in which a head alone draws."""
        pictures, seeds, width = inputs.shape
        mean, variance = self.statistics["0.running_mean"].view(-1), self.statistics["0.running_var"].view(-1)
        normalised = F.batch_norm(inputs.reshape(pictures, -1), mean, variance, training=True)
        normalised = normalised.view(pictures, seeds, width)
        share = 0.5 if self.hidden else 1.0
        masks = [
            _mask(normalised[:, group.seed], group.dropout * share, generator)
            for group, generator in zip(self.groups, generators, strict=True)
        ]
        if not self.hidden:
            return self._first_layer(normalised, masks)
        values = F.relu(self._first_layer(normalised, masks))
        masks = [
            _mask(values[:, 0], group.dropout, generator)
            for group, generator in zip(self.groups, generators, strict=True)
        ]
        return self._last_layer(values, masks, training=True)

    @torch.no_grad()
    def validate(self, inputs: Tensor) -> Tensor:
        """Logits (pictures, heads, classes) in eval mode for `inputs` (pictures, activations), which all heads see."""
        means, variances = self.statistics["0.running_mean"], self.statistics["0.running_var"]
        normalised = torch.stack(
            [F.batch_norm(inputs, *moments) for moments in zip(means, variances, strict=True)], dim=1
        )
        masks = [None] * len(self.groups)
        first = self._first_layer(normalised, masks)
        return self._last_layer(F.relu(first), masks, training=False) if self.hidden else first

    def state(self, head: int) -> dict[str, Tensor]:
        """One head's parameters and statistics, as `build_head` names them; a copy."""
        seed = int(self.seed_of[head])
        own = {name: stacked[head] for name, stacked in self.parameters.items()}
        own |= {name: of[seed if name.startswith("0.") else head] for name, of in self.statistics.items()}
        return {name: tensor.detach().clone() for name, tensor in own.items()}

    def _first_layer(self, normalised: Tensor, masks: Masks) -> Tensor:
        """Scale, shift, dropout and the linear layer: (pictures, heads, outputs) of (pictures, seeds, inputs)."""
        own = HeadTensors(*(self.parameters[name] for name in ("0.weight", "0.bias", "2.weight")))
        return shared_layer(normalised, self.groups, masks, own) + self.parameters["2.bias"]

    def _last_layer(self, values: Tensor, masks: Masks, training: bool) -> Tensor:
        """BatchNorm, dropout and the linear layer over (pictures, heads, hidden), each head's own."""
        mean, variance = (self.statistics[f"4.running_{name}"].view(-1) for name in ("mean", "var"))
        scale, shift = (self.parameters[f"4.{name}"].flatten() for name in ("weight", "bias"))
        flat = values.flatten(1)
        normalised = F.batch_norm(flat, mean, variance, scale, shift, training=training).view_as(values)
        if any(mask is not None for mask in masks):
            kept = [
                torch.ones_like(normalised[:, group.heads])
                if mask is None
                else mask[:, None].expand(-1, group.last - group.first, -1)
                for group, mask in zip(self.groups, masks, strict=True)
            ]
            normalised = normalised * torch.cat(kept, dim=1)
        weight, bias = self.parameters["6.weight"], self.parameters["6.bias"]
        return torch.bmm(normalised.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1) + bias


def bytes_per_head(shape: HeadShape, batch_size: int) -> int:
    """About what a head takes in memory while many are trained at once."""
    width, classes, hidden = shape.width, shape.classes, shape.hidden
    outputs = hidden or classes
    numbers = outputs * width + 2 * width + (hidden * (classes + 2) if hidden else 0)
    if folds(outputs, batch_size):
        return 4 * COPIES_WHERE_FOLDED * numbers
    return 4 * (COPIES * numbers + COPIES_OF_INPUTS * batch_size * width)


def _mask(like: Tensor, dropout: float, generator: torch.Generator) -> Tensor | None:
    """The mask of dropout; None where it is off."""
    return dropout_mask(like.shape, dropout, like.device, generator) if dropout else None


def _state(shape: HeadShape, seed: int) -> dict[str, Tensor]:
    """The weights and statistics of `build_head` after `torch.manual_seed(seed)`; the random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: nn.Module = build_head(shape.width, shape.classes, shape.hidden, 0.0)
    return {name: tensor for name, tensor in head.state_dict().items() if "num_batches" not in name}


def _groups(heads: Sequence[tuple[int, float]], seeds: Sequence[int]) -> list[HeadGroup]:
    groups = []
    first = 0
    for (seed, dropout), members in groupby(heads):
        last = first + len(list(members))
        groups.append(HeadGroup(seeds.index(seed), dropout, first, last))
        first = last
    return groups


class HeadTensors(NamedTuple):
    """`scale` and `shift` (heads, inputs) and `weight` (heads, outputs, inputs) of each head, or their gradients."""

    scale: Tensor
    shift: Tensor
    weight: Tensor

    def of(self, heads: slice) -> "HeadTensors":
        """Those of some heads, as views."""
        return HeadTensors(self.scale[heads], self.shift[heads], self.weight[heads])


def shared_layer(inputs: Tensor, groups: Sequence[HeadGroup], masks: Masks, own: HeadTensors) -> Tensor:
    """(pictures, heads, outputs) for `inputs` (pictures, seeds, inputs), for each group a mask (pictures, inputs) or
    None, and each head's own tensors."""
    outputs: Tensor = _SharedLayer.apply(inputs, groups, masks, *own)
    return outputs


def folds(outputs: int, pictures: int) -> bool:
    """Whether scale and shift are folded into the weights of a linear layer, being smaller than its inputs."""
    return outputs <= pictures


class _SharedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        groups: Sequence[HeadGroup],
        masks: Masks,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
    ) -> Tensor:
        own = HeadTensors(scale, shift, weight)
        ctx.save_for_backward(inputs, *own)
        ctx.groups, ctx.masks = groups, masks
        layer = _folded if folds(weight.shape[1], len(inputs)) else _unfolded
        outputs = [
            layer(inputs[:, group.seed], mask, own.of(group.heads)) for group, mask in zip(groups, masks, strict=True)
        ]
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *saved = ctx.saved_tensors
        (of_outputs,) = gradients
        own = HeadTensors(*saved)
        gradient = HeadTensors(*(torch.empty_like(tensor) for tensor in own))
        write = _write_folded_gradient if folds(own.weight.shape[1], len(inputs)) else _write_unfolded_gradient
        for group, mask in zip(ctx.groups, ctx.masks, strict=True):
            heads = group.heads
            write(of_outputs[:, heads], inputs[:, group.seed], mask, own.of(heads), gradient.of(heads))
        return None, None, None, *gradient


def _folded(inputs: Tensor, mask: Tensor | None, own: HeadTensors) -> Tensor:
    scale, shift, weight = own
    heads, outputs, _ = weight.shape
    scaled = (weight * scale[:, None]).flatten(0, 1)
    if mask is None:
        shifted = torch.bmm(weight, shift[:, :, None]).flatten()
        return torch.addmm(shifted, inputs, scaled.T).view(-1, heads, outputs)
    shifted = (weight * shift[:, None]).flatten(0, 1)
    return torch.addmm(mask @ shifted.T, inputs * mask, scaled.T).view(-1, heads, outputs)


def _write_folded_gradient(
    of_outputs: Tensor, inputs: Tensor, mask: Tensor | None, own: HeadTensors, gradient: HeadTensors
) -> None:
    """Into `gradient`."""
    scale, shift, weight = own
    flat = of_outputs.flatten(1).T
    of_scaled = (flat @ (inputs if mask is None else inputs * mask)).view_as(weight)
    torch.mul(of_scaled, scale[:, None], out=gradient.weight)
    torch.sum(of_scaled.mul_(weight), dim=1, out=gradient.scale)
    if mask is None:
        sums = of_outputs.sum(0)
        gradient.weight.addcmul_(sums[:, :, None], shift[:, None])
        torch.sum(weight * sums[:, :, None], dim=1, out=gradient.shift)
        return
    of_shifted = (flat @ mask).view_as(weight)
    gradient.weight.addcmul_(of_shifted, shift[:, None])
    torch.sum(of_shifted.mul_(weight), dim=1, out=gradient.shift)


def _unfolded(inputs: Tensor, mask: Tensor | None, own: HeadTensors) -> Tensor:
    return torch.bmm(_own_inputs(inputs, mask, own), own.weight.transpose(1, 2)).transpose(0, 1)


def _write_unfolded_gradient(
    of_outputs: Tensor, inputs: Tensor, mask: Tensor | None, own: HeadTensors, gradient: HeadTensors
) -> None:
    """Into `gradient`."""
    by_head = of_outputs.transpose(0, 1)
    torch.bmm(by_head.transpose(1, 2), _own_inputs(inputs, mask, own), out=gradient.weight)
    of_inputs = torch.bmm(by_head, own.weight)
    if mask is not None:
        of_inputs.mul_(mask)
    torch.sum(of_inputs, dim=1, out=gradient.shift)
    torch.sum(of_inputs.mul_(inputs), dim=1, out=gradient.scale)


def _own_inputs(inputs: Tensor, mask: Tensor | None, own: HeadTensors) -> Tensor:
    """(heads, pictures, inputs): scaled, shifted and masked."""
    scaled = torch.addcmul(own.shift[:, None], inputs, own.scale[:, None])
    return scaled if mask is None else scaled.mul_(mask)
