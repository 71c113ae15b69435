"""What helpers can do before they are called for, while the leader does the same for itself: seconds that the first
call would wait for."""

import importlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.ranks.team import processes, together


def ready_helpers(modules: Sequence[str], device: torch.device) -> None:
    """Let the helpers load these modules and start the device, if there are any; the leader does not wait for it."""
    if processes() > 1:
        with together(get_ready, tuple(modules), device.type):
            pass


def get_ready(modules: Sequence[str], device: str) -> None:
    """A helper's part. A GPU loads its libraries when it is first asked for a convolution."""
    for name in modules:
        importlib.import_module(name)
    if device == "cuda" and torch.cuda.is_available():
        square = torch.zeros(1, 1, 8, 8, device=device, dtype=torch.bfloat16)
        F.conv2d(square, square[:, :, :3, :3])
