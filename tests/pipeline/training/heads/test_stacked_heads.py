"""Stacked heads are heads of their own, and the gradient that is written out is autograd's."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.models.network import build_head
from pipeline.training.heads.stacked_heads import (
    HeadGroup,
    HeadShape,
    HeadTensors,
    StackedHeads,
    bytes_per_head,
    folds,
    shared_layer,
)

GROUPS = [HeadGroup(0, 0.0, 0, 2), HeadGroup(0, 0.5, 2, 3), HeadGroup(1, 0.5, 3, 6)]
WIDTH, PICTURES = 5, 4
HEADS = [(3, 0.0), (3, 0.5), (3, 0.5), (8, 0.5)]  # seed and dropout
CPU = torch.device("cpu")


def tensors(outputs: int) -> tuple[Tensor, list[Tensor | None], list[Tensor]]:
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
    inputs, masks, own = tensors(outputs)
    together, alone = shared_layer(inputs, GROUPS, masks, HeadTensors(*own)), one_by_one(inputs, masks, own)
    torch.testing.assert_close(together, alone)
    towards = torch.randn_like(alone)
    for ours, expected in zip(
        torch.autograd.grad(together, own, towards), torch.autograd.grad(alone, own, towards), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_scale_and_shift_go_into_weights_that_are_smaller_than_the_batch():
    assert folds(3, PICTURES)
    assert not folds(7, PICTURES)


def alone(seed: int, hidden: int, dropout: float) -> nn.Module:
    torch.manual_seed(seed)
    return build_head(6, 2, hidden, dropout)


def generators(stack: StackedHeads, seed: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in stack.groups]


@pytest.mark.parametrize("hidden", [0, 4, 9])
def test_a_head_starts_as_its_seed_makes_it(hidden):
    stack = StackedHeads(HeadShape(6, 2, hidden), HEADS, CPU)
    assert len(stack) == 4
    for index, (seed, dropout) in enumerate(HEADS):
        expected = alone(seed, hidden, dropout).state_dict()
        state = stack.state(index)
        assert state.keys() == {name for name in expected if "num_batches" not in name}
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("hidden", [0, 4, 9])
def test_the_logits_are_those_of_the_heads_alone_with_the_same_dropout(hidden):
    stack = StackedHeads(HeadShape(6, 2, hidden), HEADS, CPU)
    with torch.no_grad():
        for parameter in stack.parameters.values():
            parameter.normal_()
    inputs = torch.randn(5, 2, 6)
    logits = stack.train(inputs, generators(stack))
    evaluated = stack.validate(inputs[:, 0])
    for index, (seed, dropout) in enumerate(HEADS):
        head = alone(seed, hidden, dropout)
        before = {name: of for name, of in head.state_dict().items() if "running" in name or "num_batches" in name}
        head.load_state_dict(stack.state(index) | before)
        torch.manual_seed(1)
        torch.testing.assert_close(logits[:, index], head(inputs[:, int(stack.seed_of[index])]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(evaluated[:, index], head.eval()(inputs[:, 0]), rtol=1e-4, atol=1e-4)


def test_heads_that_share_seed_and_dropout_are_a_group():
    stack = StackedHeads(HeadShape(6, 2, 0), HEADS, CPU)
    assert stack.groups == [HeadGroup(0, 0.0, 0, 1), HeadGroup(0, 0.5, 1, 3), HeadGroup(1, 0.5, 3, 4)]
    assert stack.seed_of.tolist() == [0, 0, 0, 1]


def test_a_head_takes_more_memory_the_larger_it_is():
    linear, small, large = (bytes_per_head(HeadShape(2560, 2, hidden), 32) for hidden in (0, 16, 512))
    assert linear < small < large
