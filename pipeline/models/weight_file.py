"""Reads files of weights as training scripts write them, and finds the weights of a body in them; runs no code.

A file may hold them under a key of its own (`{"model": …}`), with a prefix before all names (`module.`, `backbone.`),
and without the counters of batches that BatchNorm layers have had since PyTorch 0.4.1.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.system.errors import UserError

State: TypeAlias = Mapping[str, Tensor]
# Keys under which averaged weights lie, which are taken before those that they are the average of, as timm does.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
COUNTER = "num_batches_tracked"
DEEPEST = 4
_scalar = np.float64(0).__reduce__()[0]
# What training scripts often save beside weights, their options and best accuracy; to read them runs no code.
PLAIN: tuple[Any, ...] = (
    argparse.Namespace, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64)), type(np.dtype(np.int64)),
    (_scalar, "numpy.core.multiarray.scalar"), (_scalar, "numpy._core.multiarray.scalar"),
)  # fmt: skip
# What `torch.compile` and FSDP put into names, before any part of them.
_WRAPPED = re.compile(r"\b_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module)\.")
_OBJECT = re.compile(r"GLOBAL (\w[\w.]*)")


def read_states(path: Path) -> list[State]:
    """The dictionaries of tensors in a file, averaged weights first; UserError if it cannot be read or has none."""
    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(list(PLAIN)):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises errors of zip, pickle or safetensors
        raise UserError(f"The weights in {path} cannot be read: {_reason(error)}") from None
    states = [state for _, state in sorted(_states(content), key=lambda found: found[0])]
    if not states:
        raise UserError(f"The file {path} holds no weights by name; give a state dict, as torch.save writes it.")
    return states


def matching(states: list[State], wanted: State) -> dict[str, Tensor]:
    """The tensors that fit most of the names and shapes of `wanted`, out of one of `states`, whose names may all have a
    prefix; of those that fit alike the first. Counters that are in no file of old are the wanted ones."""
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)}
    candidates = [
        counters | {name: state[f"{prefix}{name}"] for name in wanted if f"{prefix}{name}" in state}
        for state in states
        for prefix in _prefixes(state, wanted)
    ]
    return max(candidates, key=lambda found: sum(fits(tensor, wanted[name]) for name, tensor in found.items()))


def fits(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether the tensor has the wanted shape, and is one of fractions where these are wanted."""
    return tensor.shape == wanted.shape and (tensor.is_floating_point() or not wanted.is_floating_point())


def fault(name: str, tensor: Tensor) -> str:
    """What makes a tensor of this name unfit to compute with, such as "3 of 64 values are NaN or infinite"; or ""."""
    broken = int((~torch.isfinite(tensor)).sum())
    if broken:
        return f"{broken:,} of {tensor.numel():,} values are NaN or infinite"
    negative = int((tensor < 0).sum()) if name.endswith("running_var") else 0
    return f"{negative:,} of {tensor.numel():,} variances are below 0" if negative else ""


def _states(content: Any, is_averaged: bool = False, depth: int = 0) -> Iterator[tuple[bool, State]]:
    """(whether these are not averaged, tensors by name), of the content itself and of all dictionaries in it."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if named:
        yield not is_averaged, {_WRAPPED.sub("", name): tensor for name, tensor in named.items()}
    for key, value in content.items():
        yield from _states(value, is_averaged or key in AVERAGED, depth + 1)


def _prefixes(state: State, wanted: State) -> list[str]:
    """What stands before some of the wanted names in `state`, such as "module.backbone.", after no prefix at all."""
    names = [name for name in wanted if not name.endswith(COUNTER)]
    some = [names[0], names[len(names) // 2], names[-1]]
    found = (name.removesuffix(end) for end in some for name in state if name.endswith(f".{end}"))
    return list(dict.fromkeys(["", *found]))


def _reason(error: Exception) -> str:
    """What was wrong with a file, on one line."""
    words = " ".join(str(error).split())
    if (found := _OBJECT.search(words)) is not None:
        return f"it holds Python objects ({found[1]}), which are never loaded; give a file of model.state_dict() alone."
    # PyTorch's own sentence advises to run the code in the file.
    return "it is damaged, or was not written by torch.save." if "weights_only" in words else words[:200]
