import pytest

from pipeline.ranks.environment import Rank, own_rank, take_own_gpu

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


@pytest.fixture
def torchrun(monkeypatch):
    for name, value in zip(NAMES, ("3", "4", "1", "2", "10.0.0.1"), strict=True):
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_torchrun_says_which_process_this_is(torchrun):
    assert own_rank() == Rank(3, 4, 1, 2)
    assert not own_rank().leads


@pytest.mark.parametrize("missing", NAMES)
def test_without_torchrun_a_process_is_alone_whatever_a_scheduler_has_set(torchrun, missing):
    torchrun.delenv(missing)
    assert own_rank() == Rank()
    assert own_rank().leads


@pytest.mark.parametrize(
    ("given", "seen"),
    [(None, "1"), ("4,6", "6"), ("GPU-a, GPU-b", "GPU-b"), ("5", "-1"), ("", ""), ("-1", "-1")],
)
def test_each_process_sees_the_gpu_of_its_number_alone(given, seen):
    environment = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    take_own_gpu(Rank(3, 4, 1, 2), environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": seen}


def test_a_process_alone_sees_what_it_saw():
    environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
    take_own_gpu(Rank(), environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": "0,1"}
