"""Many heads of one shape as stacked tensors, which one pass trains or judges at once; see `network.build_head`.

What depends on the seed and the dropout alone is the same for all heads that share them, and is computed once: the
batch, the first BatchNorm's normalised inputs, and the dropout masks. Its scale and shift are each head's own and go
into the weights of the linear layer behind it, where those are smaller than the batch, so that heads that share a
batch become one matrix product over that batch.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.network import build_head
from pipeline.stacked_layer import Group, folds, shared_layer

# Numbers of 4 bytes that a parameter takes in training: itself, its gradient, AdamW's two moments and its step, and
# where scale and shift go into the weights, both products and their gradients.
COPIES, COPIES_WHERE_FOLDED = 5, 9
# And an input of the first layer that is each head's own: scaled, masked, and the gradients of these.
COPIES_OF_INPUTS = 6


class StackedHeads:
    """Heads of one shape, each with the weights that its own seed gives it.

    `parameters` are those of `build_head` by their names there, and `statistics` BatchNorm's running ones, with the
    heads stacked along the first dimension; the statistics of the inputs have the stack's `seeds` there instead, since
    they depend on the order of the pictures alone.
    """

    def __init__(
        self, width: int, classes: int, hidden: int, heads: Sequence[tuple[int, float]], device: torch.device
    ) -> None:
        """For `heads`, (seed, dropout) of each, those that share both next to one another."""
        self.seeds = list(dict.fromkeys(seed for seed, _ in heads))
        self.groups, self.hidden = _groups(heads, self.seeds), hidden
        self.seed_of = torch.tensor([self.seeds.index(seed) for seed, _ in heads], device=device)
        count = torch.tensor([sum(one == seed for one, _ in heads) for seed in self.seeds])
        assert self.seed_of.tolist() == sorted(self.seed_of.tolist()), "heads of one seed have to stand together"
        by_seed = [_state(width, classes, hidden, seed) for seed in self.seeds]
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
    def judge(self, inputs: Tensor) -> Tensor:
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

    def _first_layer(self, normalised: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """Scale, shift, dropout and the linear layer: (pictures, heads, outputs) of (pictures, seeds, inputs)."""
        own = [self.parameters[name] for name in ("0.weight", "0.bias", "2.weight")]
        return shared_layer(normalised, self.groups, masks, *own) + self.parameters["2.bias"]

    def _last_layer(self, values: Tensor, masks: Sequence[Tensor | None], training: bool) -> Tensor:
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


def bytes_per_head(width: int, classes: int, hidden: int, batch_size: int) -> int:
    """About what a head takes in memory while many are trained at once."""
    outputs = hidden or classes
    numbers = outputs * width + 2 * width + (hidden * (classes + 2) if hidden else 0)
    if folds(outputs, batch_size):
        return 4 * COPIES_WHERE_FOLDED * numbers
    return 4 * (COPIES * numbers + COPIES_OF_INPUTS * batch_size * width)


def _mask(like: Tensor, dropout: float, generator: torch.Generator) -> Tensor | None:
    """What dropout multiplies with: on a CPU the very numbers that `nn.Dropout` draws; None where it is off."""
    if dropout == 0:
        return None
    kept = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return kept.bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


def _state(width: int, classes: int, hidden: int, seed: int) -> dict[str, Tensor]:
    """What `build_head` starts with after `torch.manual_seed(seed)`; the random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: nn.Module = build_head(width, classes, hidden, 0.0)
    return {name: tensor for name, tensor in head.state_dict().items() if "num_batches" not in name}


def _groups(heads: Sequence[tuple[int, float]], seeds: Sequence[int]) -> list[Group]:
    groups = []
    first = 0
    for (seed, dropout), members in groupby(heads):
        last = first + len(list(members))
        groups.append(Group(seeds.index(seed), dropout, first, last))
        first = last
    return groups
