"""AdamW with a rate and a decay for each head is AdamW for each head."""

import torch
from torch.optim import AdamW

from pipeline.optim import BETAS
from pipeline.stacked_optim import StackedAdamW

RATES, DECAYS = [1e-3, 0.1, 0.02], [0.5, 0.0, 0.9]


def test_each_head_is_moved_as_by_an_adamw_of_its_own():
    torch.manual_seed(0)
    matrices = torch.randn(3, 4, 5, requires_grad=True)
    vectors = torch.randn(3, 4, requires_grad=True)
    alone = [[one[head].detach().clone().requires_grad_() for one in (matrices, vectors)] for head in range(3)]
    optimizers = [
        AdamW(
            [{"params": [matrix], "weight_decay": decay}, {"params": [vector], "weight_decay": 0.0}], lr=rate,
            betas=BETAS,
        )
        for (matrix, vector), rate, decay in zip(alone, RATES, DECAYS, strict=True)
    ]  # fmt: skip
    together = StackedAdamW([matrices, vectors], RATES, DECAYS)
    for factor in (1.0, 0.6, 0.1, 1.0):
        matrices.grad, vectors.grad = torch.randn_like(matrices), torch.randn_like(vectors)
        for head, (optimizer, rate) in enumerate(zip(optimizers, RATES, strict=True)):
            alone[head][0].grad, alone[head][1].grad = matrices.grad[head].clone(), vectors.grad[head].clone()
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        together.step(factor)
        assert matrices.grad is None
        for head in range(3):
            torch.testing.assert_close(matrices[head], alone[head][0])
            torch.testing.assert_close(vectors[head], alone[head][1])


def test_a_head_whose_gradient_is_no_number_moves_no_other():
    parameter = torch.ones(3, 2, requires_grad=True)
    together = StackedAdamW([parameter], RATES, DECAYS)
    for _ in range(2):
        parameter.grad = torch.tensor([[1.0, 1.0], [torch.nan, torch.inf], [1.0, 1.0]])
        together.step(1.0)
    assert parameter[[0, 2]].isfinite().all()
    assert not parameter[1].isfinite().any()
