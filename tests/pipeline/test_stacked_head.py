"""Stacked heads begin, and answer, as heads by themselves."""

import pytest
import torch
from torch import nn

from pipeline.network import build_head
from pipeline.stacked_head import StackedHeads, bytes_per_head
from pipeline.stacked_layer import Group

CPU = torch.device("cpu")
HEADS = [(3, 0.0), (3, 0.5), (3, 0.5), (8, 0.5)]


def alone(seed: int, hidden: int, dropout: float) -> nn.Module:
    torch.manual_seed(seed)
    return build_head(6, 2, hidden, dropout)


def generators(stack: StackedHeads, seed: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for _ in stack.groups]


@pytest.mark.parametrize("hidden", [0, 4, 9])
def test_a_head_starts_as_its_seed_makes_it(hidden):
    stack = StackedHeads(6, 2, hidden, HEADS, CPU)
    assert len(stack) == 4
    for place, (seed, dropout) in enumerate(HEADS):
        expected = alone(seed, hidden, dropout).state_dict()
        state = stack.state(place)
        assert state.keys() == {name for name in expected if "num_batches" not in name}
        for name, tensor in state.items():
            assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("hidden", [0, 4, 9])
def test_the_logits_are_those_of_the_heads_alone_with_the_same_dropout(hidden):
    stack = StackedHeads(6, 2, hidden, HEADS, CPU)
    with torch.no_grad():
        for parameter in stack.parameters.values():
            parameter.normal_()
    inputs = torch.randn(5, 2, 6)
    logits = stack.train(inputs, generators(stack))
    judged = stack.judge(inputs[:, 0])
    for place, (seed, dropout) in enumerate(HEADS):
        head = alone(seed, hidden, dropout)
        before = {name: of for name, of in head.state_dict().items() if "running" in name or "num_batches" in name}
        head.load_state_dict(stack.state(place) | before)
        torch.manual_seed(1)
        torch.testing.assert_close(logits[:, place], head(inputs[:, int(stack.seed_of[place])]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(judged[:, place], head.eval()(inputs[:, 0]), rtol=1e-4, atol=1e-4)


def test_heads_that_share_seed_and_dropout_are_a_group():
    stack = StackedHeads(6, 2, 0, HEADS, CPU)
    assert stack.groups == [Group(0, 0.0, 0, 1), Group(0, 0.5, 1, 3), Group(1, 0.5, 3, 4)]
    assert stack.seed_of.tolist() == [0, 0, 0, 1]


def test_a_head_takes_more_memory_the_larger_it_is():
    assert bytes_per_head(2560, 2, 0, 32) < bytes_per_head(2560, 2, 16, 32) < bytes_per_head(2560, 2, 512, 32)
