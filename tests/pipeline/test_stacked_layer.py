"""The layer that many heads share is autograd's, written out."""

import pytest
import torch
from torch import Tensor

from pipeline.stacked_layer import Group, folds, shared_layer

GROUPS = [Group(0, 0.0, 0, 2), Group(0, 0.5, 2, 3), Group(1, 0.5, 3, 6)]
WIDTH, PICTURES = 5, 4


def parts(outputs: int) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
    torch.manual_seed(0)
    inputs = torch.randn(PICTURES, 2, WIDTH, dtype=torch.float64)
    masks = [None, *(torch.randint(0, 2, (PICTURES, WIDTH)).double() * 2 for _ in range(2))]
    shapes = ((6, WIDTH), (6, WIDTH), (6, outputs, WIDTH))
    return inputs, masks, [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def one_by_one(inputs: Tensor, masks: list[Tensor | None], own: list[Tensor]) -> Tensor:
    outputs = []
    for group, mask in zip(GROUPS, masks, strict=True):
        for head in range(group.first, group.last):
            scale, shift, weight = (one[head] for one in own)
            scaled = inputs[:, group.seed] * scale + shift
            outputs.append((scaled if mask is None else scaled * mask) @ weight.T)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("outputs", [3, 7])
def test_each_heads_outputs_and_gradients_are_those_of_a_layer_of_its_own(outputs):
    inputs, masks, own = parts(outputs)
    together, alone = shared_layer(inputs, GROUPS, masks, *own), one_by_one(inputs, masks, own)
    torch.testing.assert_close(together, alone)
    towards = torch.randn_like(alone)
    for ours, expected in zip(
        torch.autograd.grad(together, own, towards), torch.autograd.grad(alone, own, towards), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_scale_and_shift_go_into_weights_that_are_smaller_than_the_batch():
    assert folds(3, PICTURES)
    assert not folds(7, PICTURES)
