"""Sessions of ONNX Runtime: a graph with weights, run on images on the CPU, a few pictures at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

# Pixels that each thread gets at a time: with more, layers no longer fit the processor's caches; with fewer, threads
# wait for each other. On two cores, and lite0, 4 pictures of 128 px at a time take 0.86 of the time of 32.
PIXELS_PER_THREAD = 2**15


@dataclass(frozen=True)
class Session:
    """A graph that is ready to run on `at_once` pictures."""

    inference: Any
    at_once: int

    def run(self, images: Tensor) -> list[Tensor]:
        """The graph's outputs for images (N, channels, height, width), any number of them."""
        given = images.numpy()
        batch = np.empty((self.at_once, *given.shape[1:]), dtype=np.float32)
        (name,) = (one.name for one in self.inference.get_inputs())
        chunks = []
        for start in range(0, len(given), self.at_once):
            chunk = given[start : start + self.at_once]
            batch[: len(chunk)] = chunk
            batch[len(chunk) :] = 0
            chunks.append([output[: len(chunk)] for output in self.inference.run(None, {name: batch})])
        return [torch.from_numpy(np.concatenate(outputs)) for outputs in zip(*chunks, strict=True)]


def start_session(graph: bytes | Path, at_once: int, weights: Mapping[str, Tensor] = {}) -> Session:
    """A session of a graph, in a file or in memory, with these `weights` by name, as far as it has none of its own.

    It computes with as many threads as torch, which sleep while they wait. The number of pictures is fixed, since the
    layout of memory, the padding of convolutions and more are computed once then.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised anyway
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_free_dimension_override_by_name("pictures", at_once)
    held = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor.contiguous().numpy()) for name, tensor in weights.items()
    }
    if held:
        options.add_external_initializers(list(held), list(held.values()))
    source = graph if isinstance(graph, bytes) else str(graph)
    return Session(onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]), at_once)


def pictures_at_once(image_px: int) -> int:
    """How many pictures of `image_px` a session takes at a time."""
    return max(torch.get_num_threads() * PIXELS_PER_THREAD // image_px**2, 1)
