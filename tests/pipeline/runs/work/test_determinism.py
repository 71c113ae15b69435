"""On a GPU the same result each time is asked of all that computes; what cannot give it is told in a sentence."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch.backends import cudnn

from pipeline.models.body import build_body
from pipeline.runs.work.determinism import deterministic
from pipeline.system.errors import UserError

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def settings() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic, cudnn.benchmark,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.mark.parametrize("error", [None, ValueError])
def test_all_settings_of_a_gpu_hold_within_the_block_and_are_as_before_after_it(error, monkeypatch):
    monkeypatch.setattr(cudnn, "benchmark", True)
    before = settings()
    try:
        with deterministic(GPU):
            assert settings() == (True, False, True, False)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            if error:
                raise error
    except ValueError:
        pass
    assert settings() == before
    assert before == (False, False, False, True)


def test_on_a_cpu_nothing_changes():
    before = settings()
    with deterministic(CPU):
        assert settings() == before
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_setting_of_cublas_that_was_given_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(GPU):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_an_operation_without_such_a_form_is_told_with_the_keys_to_change():
    told = (
        r"^deterministic is true, but on a GPU put_ has no form that is; set deterministic to false, or choose another"
    )
    with pytest.raises(UserError, match=told), deterministic(GPU):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_that_was_used_before_is_told_with_what_to_start_python_with():
    of_torch = "Deterministic behavior was enabled with …, but … CuBLAS …: CUBLAS_WORKSPACE_CONFIG=:4096:8 or …"
    with pytest.raises(UserError, match="start Python with CUBLAS_WORKSPACE_CONFIG=:4096:8"), deterministic(GPU):
        raise RuntimeError(of_torch)


def test_other_errors_are_as_they_were():
    with pytest.raises(RuntimeError, match="out of memory"), deterministic(GPU):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("size", [1, (1, 1)])
def test_the_pool_before_a_head_is_a_maximum_with_the_same_gradient(size):
    maps = torch.randn(3, 5, 4, 4, requires_grad=True)
    expected = F.adaptive_max_pool2d(maps, size)
    (of_expected,) = torch.autograd.grad(expected.square().sum(), maps)
    with deterministic(GPU):
        found = F.adaptive_max_pool2d(maps, size)
    assert type(found.grad_fn).__name__ == "AmaxBackward0"
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found.square().sum(), maps)[0], of_expected)


def test_pools_of_parts_of_a_map_and_places_of_maxima_are_left_alone():
    maps = torch.randn(3, 5, 4, 4)
    with deterministic(GPU):
        assert F.adaptive_max_pool2d(maps, 2).shape == (3, 5, 2, 2)
        _, places = F.adaptive_max_pool2d(maps, 1, return_indices=True)
    assert places.shape == (3, 5, 1, 1)


def test_a_network_is_built_and_trained_within_the_block():
    with deterministic(GPU):
        network = build_body("test_resnet", 64).module
        network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(weights.grad is not None for weights in network.parameters())
