"""What the C library does with freed memory: keeps it, so that each step of a training on a CPU finds it again."""

import ctypes
import sys
from typing import Any

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT_BYTES, _MOST_KEPT_BYTES = 2**30, 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks for the next request instead of giving each large one back to the system, which
    faults its pages in again layer by layer: a quarter of a training step's time. Other C libraries stay as they are.

    Between stages, whose blocks differ in size, `return_freed_memory` gives it back.
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT_BYTES)


def return_freed_memory() -> None:
    """Give what is kept back to the system."""
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_c_library(name: str) -> Any:
    """A function that glibc has, or None."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
