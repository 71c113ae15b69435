"""Chooses the device and its precision, and moves tensors to it."""

from contextlib import AbstractContextManager
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pipeline.system.errors import UserError

Precision: TypeAlias = Literal["bfloat16", "float32"]
# What a GPU computes at a time where nothing is trained, in pixels: so much that launching its kernels takes no longer.
PIXELS_PER_PASS = 2**24
# More than the layers of any common backbone hold for a pixel of the picture at any moment of such a pass.
BYTES_PER_PIXEL = 512
# Of a GPU's free memory, which it may take.
SHARE_OF_FREE_MEMORY = 0.5


def choose_device(name: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda"; UserError if it is not available."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no CUDA device here; set device to auto or cpu.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def precision_of(device: torch.device) -> Precision:
    """What networks compute in where they are not trained: bfloat16 on a GPU, float32 on a CPU."""
    return "bfloat16" if device.type == "cuda" else "float32"


def training_precision(asked: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """What networks are trained in, if the recipe asks for this: by itself bfloat16 on a GPU and on a CPU that has
    matrix units for it, without which it is slower there than float32."""
    if asked != "auto":
        return asked
    return "bfloat16" if device.type == "cuda" or has_matrix_units() else "float32"


def has_matrix_units() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 by units of their own (AMX)."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def mixed_precision(
    device: torch.device, precision: Literal["auto"] | Precision = "auto"
) -> AbstractContextManager[object]:
    """A block in which networks compute in this precision; by itself in `precision_of(device)`."""
    wanted = precision_of(device) if precision == "auto" else precision
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted == "bfloat16")


def pictures_per_pass(batch_size: int, image_px: int, device: torch.device) -> int:
    """How many pictures of `image_px` go through a network at a time where nothing is trained, so that the result does
    not depend on it: `batch_size`; on a GPU more, if that keeps it from waiting for launches and its memory holds them.
    There the last bits do depend on it, so that it is `batch_size` where they are to be the same each time.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return batch_size
    held = int(SHARE_OF_FREE_MEMORY * torch.cuda.mem_get_info(device)[0]) // (BYTES_PER_PIXEL * image_px**2)
    return max(batch_size, min(PIXELS_PER_PASS // image_px**2, held))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device`; to a GPU from pinned memory, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
