import shutil
import sys

import pytest

from pipeline.system import machine
from pipeline.system.errors import UserError
from pipeline.system.machine import check_gpu, check_system, own_cores, usable_cores


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch, tmp_path):
    """As if this machine had no GPU; gives the path of a driver that it would have with one."""
    monkeypatch.setattr(machine, "_DRIVERS", (f"{tmp_path}/nvidia*",))
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia0"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process may use all cores")
def test_cores_that_this_process_may_not_use_do_not_count(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 5, 7})
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert usable_cores() == 3


@pytest.mark.parametrize(("together", "share"), [("", 12), ("1", 12), ("2", 6), ("5", 2), ("64", 1)])
def test_processes_that_torchrun_started_share_the_cores(monkeypatch, together, share):
    monkeypatch.setattr(machine, "usable_cores", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", together)
    assert own_cores() == share


def test_cuda_without_a_gpu_is_one_sentence():
    with pytest.raises(UserError, match=r"^device is cuda, but this machine has no CUDA device; set device to auto"):
        check_gpu("cuda")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_cuda_with_all_gpus_hidden_is_one_sentence(monkeypatch, without_gpu, hidden):
    without_gpu.touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES hides all GPUs"):
        check_gpu("cuda")


def test_cuda_with_a_driver_or_a_program_that_lists_gpus_is_left_to_torch(monkeypatch, without_gpu):
    without_gpu.touch()
    check_gpu("cuda")
    without_gpu.unlink()
    monkeypatch.setattr(shutil, "which", lambda program: "/usr/bin/nvidia-smi")
    check_gpu("cuda")


@pytest.mark.parametrize("device", ["auto", "cpu", "None"])
def test_other_devices_need_no_gpu(device):
    check_gpu(device)


@pytest.mark.parametrize(("platform", "can"), [("linux", True), ("darwin", True), ("win32", False), ("cygwin", False)])
def test_windows_is_told_at_once_that_it_needs_linux_within_it(monkeypatch, platform, can):
    monkeypatch.setattr(sys, "platform", platform)
    if can:
        check_system()
    else:
        with pytest.raises(UserError, match=r"not on Windows itself; run it there in WSL"):
            check_system()
