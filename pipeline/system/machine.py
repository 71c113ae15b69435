"""What this machine is, as far as it is known without loading torch."""

import glob
import importlib.util
import os
import shutil
import sys

from pipeline.system.errors import UserError

# Files of the drivers of NVIDIA's and AMD's GPUs, and of Linux within Windows, and the programs that list GPUs.
_DRIVERS = ("/dev/nvidia*", "/proc/driver/nvidia", "/dev/nvhost*", "/dev/nvgpu", "/dev/kfd", "/dev/dxg")
_PROGRAMS = ("nvidia-smi", "rocm-smi")
_HIDES_ALL = ("", "-1")
# The variable that lets cuBLAS give the same result each time, with a value that NVIDIA names for it.
CUBLAS_SETTING = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def usable_cores() -> int:
    """How many processor cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def own_cores() -> int:
    """How many of them are for this process: where torchrun has started several on this machine, an even share."""
    together = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(usable_cores() // int(together), 1) if together.isdecimal() and int(together) else usable_cores()


def check_system() -> None:
    """UserError on a system that Thaw does not run on."""
    if sys.platform in ("win32", "cygwin"):
        raise UserError("Thaw runs on Linux and macOS, but not on Windows itself; run it there in WSL (wsl --install).")


def check_gpu(device: str) -> None:
    """UserError if `device` is cuda, and there is certainly no GPU."""
    if device != "cuda":
        return
    if os.environ.get("CUDA_VISIBLE_DEVICES") in _HIDES_ALL:
        raise UserError(
            "device is cuda, but CUDA_VISIBLE_DEVICES hides all GPUs; unset it, or set device to auto or cpu."
        )
    if not any(map(glob.glob, _DRIVERS)) and not any(map(shutil.which, _PROGRAMS)):
        raise UserError("device is cuda, but this machine has no CUDA device; set device to auto or cpu.")


def fix_cublas() -> None:
    """Let cuBLAS give the same result each time; it reads this once, when a GPU is first used."""
    os.environ.setdefault(*CUBLAS_SETTING)


def missing_compiler(device: str) -> str:
    """What torch.compile needs on a cpu or cuda `device` and is not installed, or an empty text."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton"
        return "" if any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang", "cc"))) else "a C compiler (gcc)"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return "" if shutil.which(compiler) else f"a C++ compiler ({compiler})"
