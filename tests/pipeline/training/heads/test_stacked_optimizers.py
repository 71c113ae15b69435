"""Heads that are stacked are moved as by optimizers of their own."""

import pytest
import torch
from torch import nn

from pipeline.recipe.training_sections import TrainingOptions
from pipeline.training.heads.stacked_optimizers import build_stacked_optimizer, clip_each
from pipeline.training.optim import build_optimizer, set_rates

RATES, DECAYS = [1e-3, 0.1, 0.02], [0.5, 0.0, 0.9]
NAMES = ("matrix", "vector")


@pytest.mark.parametrize("momentum", ["constant", "cycled"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_head_is_moved_as_by_an_optimizer_of_its_own(optimizer, momentum):
    options = TrainingOptions(optimizer=optimizer, momentum=momentum)
    torch.manual_seed(0)
    stacked = {"matrix": torch.randn(3, 4, 5, requires_grad=True), "vector": torch.randn(3, 4, requires_grad=True)}
    alone = [nn.ParameterDict({name: stacked[name][head].detach().clone() for name in NAMES}) for head in range(3)]
    optimizers = [
        build_optimizer(head, {"head": NAMES}, {"head": rate}, decay, options)
        for head, rate, decay in zip(alone, RATES, DECAYS, strict=True)
    ]
    together = build_stacked_optimizer(list(stacked.values()), RATES, DECAYS, options)
    for factor in (1.0, 0.6, 0.1, 1.0):
        for name in NAMES:
            stacked[name].grad = torch.randn_like(stacked[name])
            for number, head in enumerate(alone):
                head[name].grad = stacked[name].grad[number].clone()
        for one in optimizers:
            set_rates(one, factor)
            one.step()
        together.step(factor)
        for name in NAMES:
            assert stacked[name].grad is None
            torch.testing.assert_close(stacked[name].detach(), torch.stack([head[name].detach() for head in alone]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_head_whose_gradient_is_no_number_moves_no_other(optimizer):
    parameter = torch.ones(3, 2, requires_grad=True)
    together = build_stacked_optimizer([parameter], RATES, DECAYS, TrainingOptions(optimizer=optimizer))
    for _ in range(2):
        parameter.grad = torch.tensor([[1.0, 1.0], [torch.nan, torch.inf], [1.0, 1.0]])
        clip_each([parameter], 1.0)
        together.step(1.0)
    assert parameter[[0, 2]].isfinite().all()
    assert not parameter[1].isfinite().any()


def test_gradients_of_each_head_are_clipped_to_the_norm_of_its_own():
    torch.manual_seed(0)
    stacked = [torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 4, requires_grad=True)]
    for parameter in stacked:
        parameter.grad = torch.randn_like(parameter)
        parameter.grad[0] *= 0.01
        parameter.grad[2] *= 30
    alone = [[nn.Parameter(one[head].detach()) for one in stacked] for head in range(3)]
    for head, own in enumerate(alone):
        for parameter, of_all in zip(own, stacked, strict=True):
            parameter.grad = of_all.grad[head].clone()
        nn.utils.clip_grad_norm_(own, 0.5)
    clip_each(stacked, 0.5)
    for number, of_all in enumerate(stacked):
        torch.testing.assert_close(of_all.grad, torch.stack([own[number].grad for own in alone]))
