"""What worker processes run in tests. Loads nothing heavy, since each process imports it."""

import json
import os
import time
from pathlib import Path


def wait(index: int, folder: Path) -> bool:
    (folder / f"{index}-{os.getpid()}").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / f"stopped {index}").touch()
        raise
    return True


def describe(index: int, folder: Path) -> bool:
    """Write what this process was started with, which is there before its first line of Python; the first worker has
    done all, and the second gives up."""
    started_with = dict(
        pair.decode().split("=", 1) for pair in Path("/proc/self/environ").read_bytes().split(b"\0") if b"=" in pair
    )
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    seen = {
        "started with": [started_with.get(name) for name in names],
        "now": [os.environ.get(name) for name in names],
    }
    print("at work")
    (folder / f"{index}.json").write_text(json.dumps(seen))
    return index == 0


def crash(index: int, folder: Path) -> bool:
    raise ValueError("no good")
