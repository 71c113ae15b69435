from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.batches import Batches
from pipeline.models.body import Body
from pipeline.models.network import Network
from pipeline.training.fit import Phase, fit
from pipeline.training.optim import build_optimizer
from pipeline.training.records import EpochRecord

PICTURES = np.random.default_rng(0).random((28, 3, 8, 8), dtype=np.float32)


def small_network() -> Network:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    return Network(Body(body, 4, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), 2, 8, 0.5)


def train(network: Network, is_compiled: bool) -> list[float]:
    """The losses of two epochs of four steps, validated on batches of 5, 5 and 2 pictures."""
    targets, cpu = np.arange(28) % 2, torch.device("cpu")

    def fetch(rows: Any) -> Tensor:
        return torch.from_numpy(PICTURES[rows])

    training = Batches(fetch, np.arange(16), targets, 4, cpu, seed=0)
    valid = Batches(fetch, np.arange(16, 28), targets, 5, cpu)
    optimizer = build_optimizer(
        network, {"head": [name for name, _ in network.named_parameters()]}, {"head": 0.01}, 0.1
    )
    moments = fit(Phase(network, optimizer, training, valid, [2], is_compiled=is_compiled))
    return [step.loss for moment in moments if isinstance(moment, EpochRecord) for step in moment.steps]


def test_training_steps_alone_go_through_what_is_compiled_which_draws_no_random_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes, made = [], []

    def compile_(function: Callable[[Tensor], Tensor], **settings: object) -> Callable[[Tensor], Tensor]:
        made.append(settings)

        def compiled(images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape))
            torch.rand(3) if len(shapes) == 1 else None
            return function(images)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_)
    plain, compiled = small_network(), small_network()
    assert train(compiled, is_compiled=True) == train(plain, is_compiled=False)
    assert made == [{"dynamic": False}], "sizes are known, and are not compiled anew where a batch has another"
    assert shapes == [(4, 3, 8, 8)] * (1 + 2 * 4)
    state = compiled.state_dict()
    assert list(state) == list(plain.state_dict()), "names in checkpoints and backups stay"
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


def test_where_compiling_fails_a_sentence_says_so_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_(function: Callable[[Tensor], Tensor], **settings: object) -> Callable[[Tensor], Tensor]:
        def failing(images: Tensor) -> Tensor:
            function(images)  # which moves the statistics of BatchNorm
            raise RuntimeError("no compiler here\nby and by")

        return failing

    monkeypatch.setattr(torch, "compile", compile_)
    assert train(small_network(), is_compiled=True) == train(small_network(), is_compiled=False)
    printed = capsys.readouterr().out
    assert printed.count("trained without being compiled, since that fails here (no compiler here)") == 1
