import gc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.batches import Batches
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import cut_network
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import Network
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system import device
from pipeline.training.optim import build_optimizer, set_rates, thaw
from pipeline.training.schedule import group_rates
from pipeline.training.step import EAGER_STEPS, CapturedStep, step_precision, steps_of, train_step

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = torch.device("cpu")
OPTIONS: list[dict[str, Any]] = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": "cycled"},
    {"momentum": "cycled"},
    {"clip_norm": 0.1},
    {"accumulate": 3},
]
TARGETS = np.arange(64) % 2
POINTS = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) + 2 * TARGETS[:, None].astype(np.float32)


def toy_network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def test_a_step_descends_along_the_gradient_of_its_own_batch_alone() -> None:
    network, by_hand = nn.Linear(4, 2), nn.Linear(4, 2)
    by_hand.load_state_dict(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    rows = np.arange(64)
    batches = Batches(lambda chosen: torch.from_numpy(POINTS[chosen]), rows, TARGETS, 16, CPU, 0)
    for inputs, targets in batches.epoch(0):
        loss = F.cross_entropy(by_hand(inputs), targets)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        assert float(train_step(network, optimizer, inputs, targets).plain) == pytest.approx(loss.item())
        with torch.no_grad():
            for parameter, gradient in zip(by_hand.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    for parameter, expected in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


def gradients_of_a_step(
    inputs: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float = 0.0
) -> list[Tensor]:
    """By how much a step of descent moves the weights of a network that starts the same each time."""
    network = toy_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    train_step(network, optimizer, inputs, targets, label_smoothing, weights)
    return [old - new.detach() for old, new in zip(before, network.parameters(), strict=True)]


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, yours in zip(one, other, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)


INPUTS, CLASSES = torch.from_numpy(POINTS[:6]), torch.from_numpy(TARGETS[:6])
SHARES = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", [CLASSES, SHARES], ids=["classes", "shares"])
def test_a_weight_of_none_is_to_leave_a_picture_out_and_a_whole_number_to_have_it_so_often(
    targets: Tensor, label_smoothing: float
) -> None:
    weighted = gradients_of_a_step(INPUTS, targets, torch.tensor([0.0, 1, 2, 3, 1, 0]), label_smoothing)
    chosen = torch.tensor([1, 2, 2, 3, 3, 3, 4])
    assert_close(weighted, gradients_of_a_step(INPUTS[chosen], targets[chosen], None, label_smoothing))


@pytest.mark.parametrize("weight", [0.01, 1.0, 500.0])
def test_equal_weights_of_any_size_are_no_weights(weight: float) -> None:
    equal = gradients_of_a_step(INPUTS, CLASSES, torch.full((6,), weight))
    assert_close(equal, gradients_of_a_step(INPUTS, CLASSES, None))
    uneven = gradients_of_a_step(INPUTS, CLASSES, torch.tensor([weight, 1, 1, 1, 1, 2]))
    assert not torch.allclose(uneven[0], equal[0], rtol=1e-2)


def test_weights_by_class_are_those_of_torchs_weighted_cross_entropy() -> None:
    network, by_class = toy_network(), torch.tensor([0.5, 4.0])
    expected = F.cross_entropy(network(INPUTS), CLASSES, weight=by_class)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    loss = train_step(network, optimizer, INPUTS, CLASSES, weights=by_class[CLASSES])
    torch.testing.assert_close(loss.weighted, expected.detach())
    torch.testing.assert_close(loss.plain, F.cross_entropy(network(INPUTS), CLASSES).detach())
    smoothed = train_step(network, optimizer, INPUTS, CLASSES, 0.2, by_class[CLASSES])
    torch.testing.assert_close(smoothed.weighted, loss.weighted)
    torch.testing.assert_close(smoothed.plain, loss.plain)


def test_on_a_cpu_every_step_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)
    networks = [toy_network(), toy_network()]
    one, other = (torch.optim.SGD(network.parameters(), lr=0.5) for network in networks)
    step = steps_of(networks[0], one, 0.1)
    for _ in range(EAGER_STEPS + 2):
        mine, plain = step(INPUTS, CLASSES, None), train_step(networks[1], other, INPUTS, CLASSES, 0.1)
        assert torch.equal(mine.plain, plain.plain)
    for mine, yours in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(mine, yours)


def small_network() -> Network:
    torch.manual_seed(0)
    return build_network(Checkpoint("test_efficientnet", ["a", "b"], 8, 0.0, 32, "crop", grey=False))


def trained_in(precision: str) -> tuple[Network, Optimizer, list[float]]:
    """A small network on a body of convolutions, trained on noise in this precision, and its losses."""
    network = small_network()
    optimizer = thaw(network, "none", group_rates(3e-3, 3), 0.01)
    training_mode(network, "all")
    step = steps_of(network, optimizer, options=TrainingOptions(precision=precision))  # type: ignore[arg-type]
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return network, optimizer, [float(step(images, torch.arange(8) % 2, None).plain) for _ in range(30)]


def test_in_bfloat16_a_network_learns_as_in_float32_and_its_weights_stay_float32() -> None:
    _, _, exact = trained_in("float32")
    network, optimizer, losses = trained_in("bfloat16")
    assert losses != exact
    assert losses[-1] < 0.5 * losses[0]
    assert losses == pytest.approx(exact, abs=0.1)
    state = [one for of_weight in optimizer.state.values() for one in of_weight.values() if torch.is_tensor(one)]
    assert {tensor.dtype for tensor in (*network.parameters(), *state)} == {torch.float32}
    assert trained_in("bfloat16")[2] == losses, "the same again, bit for bit"


def test_the_body_alone_is_trained_in_bfloat16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_matrix_units", lambda: True)
    network = small_network()
    assert step_precision(network, "auto") == "bfloat16"
    assert step_precision(cut_network(network, "late", 32).above, "auto") == "bfloat16"
    for asked in ("auto", "bfloat16"):
        assert step_precision(network.head, asked) == "float32"  # type: ignore[arg-type]


def test_rates_that_a_captured_step_reads_are_set_where_it_reads_them() -> None:
    optimizer = optimizer_of(toy_network())
    rate = torch.tensor(0.0)
    optimizer.param_groups[0]["lr"] = rate
    assert set_rates(optimizer, 0.5) == {"early": 0.005, "head": 0.01}
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.005)


def optimizer_of(network: nn.Module) -> Optimizer:
    names = [name for name, _ in network.named_parameters()]
    return build_optimizer(network, {"early": names[:-2], "head": names[-2:]}, {"early": 0.01, "head": 0.02}, 0.01)


def losses_on_gpu(is_captured: bool, weighted: bool, mixed: bool) -> tuple[list[float], list[Tensor], int]:
    """The losses of 50 steps at changing rates, of which each third has a smaller batch; the weights after them; and
    how many shapes were captured."""
    network = toy_network(dropout=0.3).cuda()
    optimizer = optimizer_of(network)
    step = CapturedStep(network, optimizer, 0.1, torch.device("cuda"))
    losses = []
    for number in range(50):
        chosen = torch.arange(6 if number % 3 else 4)
        inputs, targets = (INPUTS[chosen] + number / 50).cuda(), (SHARES if mixed else CLASSES)[chosen].cuda()
        weights = (1.0 + chosen).cuda() if weighted else None
        set_rates(optimizer, 1 - number / 50)
        if is_captured:
            loss = step(inputs, targets, weights)
        else:
            loss = train_step(network, optimizer, inputs, targets, 0.1, weights)
        losses.append(float(loss.plain))
    return losses, [parameter.detach().clone() for parameter in network.parameters()], len(step._graphs)


@needs_gpu
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_captured_step_does_what_an_eager_one_does(weighted: bool, mixed: bool) -> None:
    captured, moved, graphs = losses_on_gpu(True, weighted, mixed)
    eager, expected, _ = losses_on_gpu(False, weighted, mixed)
    assert graphs == 2
    np.testing.assert_allclose(captured, eager, rtol=1e-5)
    for mine, yours in zip(moved, expected, strict=True):
        torch.testing.assert_close(mine, yours)


@needs_gpu
def test_one_training_after_another_leaves_no_more_memory_behind_than_the_first() -> None:
    left = []
    for _ in range(4):
        losses_on_gpu(True, weighted=False, mixed=False)
        gc.collect()
        left.append(torch.cuda.memory_allocated())
    assert left == [left[0]] * 4


class Waits(nn.Module):
    """A layer that looks at a value, for which the processor has to wait; a graph cannot hold that."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 2 if float(inputs.sum()) > 0 else inputs


@needs_gpu
def test_a_network_that_cannot_be_captured_is_trained_eagerly_which_is_said_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = nn.Sequential(Waits(), toy_network()).cuda()
    optimizer = optimizer_of(network)
    step = CapturedStep(network, optimizer, 0.0, torch.device("cuda"))
    losses = [float(step(INPUTS.cuda(), CLASSES.cuda(), None).plain) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert capsys.readouterr().out.count("cannot be captured") == 1


def weights_after(options: TrainingOptions, steps: int = 3, factor: float = 1.0) -> list[Tensor]:
    """The weights of a toy network after some steps at half the rate."""
    network = toy_network()
    names = [name for name, _ in network.named_parameters()]
    optimizer = build_optimizer(network, {"head": names}, {"head": 0.1}, 0.01, options)
    step = steps_of(network, optimizer, 0.1, options=options)
    for _ in range(steps):
        set_rates(optimizer, factor)
        step(INPUTS, CLASSES, torch.arange(1.0, 7.0))
    return list(network.parameters())


def test_a_batch_in_parts_has_the_gradient_of_the_whole() -> None:
    whole = weights_after(TrainingOptions(optimizer="sgd"))
    for parts in (2, 3, 64):
        assert_close(weights_after(TrainingOptions(optimizer="sgd", accumulate=parts)), whole)


def test_gradients_are_scaled_down_to_their_norm() -> None:
    start = toy_network().parameters()
    clipped = weights_after(TrainingOptions(optimizer="sgd", clip_norm=1e-3), steps=1)
    moved = torch.cat([(one - old).flatten() for one, old in zip(clipped, start, strict=True) if one.ndim == 1])
    assert float(moved.detach().norm()) < 0.1 * 1e-3 * 1.01
    free = TrainingOptions(optimizer="sgd", clip_norm=1e3)
    assert all(map(torch.equal, weights_after(free), weights_after(TrainingOptions(optimizer="sgd"))))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momentum_is_high_where_rates_are_low_and_the_other_way_round(optimizer: str) -> None:
    network = toy_network()
    names = [name for name, _ in network.named_parameters()]
    options = TrainingOptions(optimizer=optimizer, momentum="cycled")  # type: ignore[arg-type]
    built = build_optimizer(network, {"head": names}, {"head": 0.1}, 0.01, options)
    found = []
    for factor in (0.0, 0.5, 1.0):
        set_rates(built, factor)
        group = built.param_groups[0]
        found.append(group["momentum"] if optimizer == "sgd" else group["betas"][0])
    assert found == pytest.approx([0.95, 0.9, 0.85])
    assert not all(map(torch.equal, weights_after(options), weights_after(TrainingOptions(optimizer=optimizer))))  # type: ignore[arg-type]


@needs_gpu
@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_options_do_the_same_in_a_captured_step(settings: dict[str, Any]) -> None:
    options, results = TrainingOptions(**settings), []
    batch = INPUTS.cuda(), CLASSES.cuda(), None
    for captured in (False, True):
        network = toy_network().cuda()
        names = [name for name, _ in network.named_parameters()]
        optimizer = build_optimizer(network, {"head": names}, {"head": 0.01}, 0.01, options)
        step = steps_of(network, optimizer, 0.1, options=options)
        assert isinstance(step, CapturedStep)
        for number in range(2 * EAGER_STEPS + 2):
            set_rates(optimizer, 1 / (1 + number))
            if captured:
                step(*batch)
            else:
                train_step(network, optimizer, batch[0], batch[1], 0.1, None, options)
        assert not captured or bool(step._graphs) == (options.momentum == "constant")
        results.append([parameter.detach().cpu() for parameter in network.parameters()])
    assert_close(*results)
