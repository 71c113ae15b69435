"""The gradients of depthwise convolutions on a CPU, by the routines of oneDNN that are fast there."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# oneDNN has a routine of its own for the gradient of kernels up to this width, however high they are.
WIDEST_OF_ONEDNN = 3
# Whether torch has oneDNN's depthwise routines here; others would take far longer for as many channels.
HAS_ROUTINES = torch.backends.cpu.get_cpu_capability().startswith("AVX") and torch._C._has_mkldnn


class DepthwiseGradients(TorchFunctionMode):
    """A block in which depthwise convolutions have their gradients computed by oneDNN's depthwise routines alone.

    For kernels of more than three columns, and in bfloat16 where there is a stride, it takes routines for convolutions
    of any kind, which need up to forty times as long.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `function`, or what stands in for a convolution."""
        if function is torch.conv2d and not kwargs and len(args) == 7 and _is_depthwise(*args):
            images, weight, bias, stride, padding, _, _ = args
            if torch.is_autocast_enabled("cpu"):
                images = images.to(torch.get_autocast_dtype("cpu"))
            return _Depthwise.apply(images, weight, bias, _Layer(tuple(stride), tuple(padding)))
        return function(*args, **(kwargs or {}))


def _is_depthwise(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Whether it has one kernel for each channel, of which a gradient is wanted."""
    return (
        HAS_ROUTINES
        and groups == len(weight) == images.shape[1] > 1
        and weight.requires_grad
        and tuple(dilation) == (1, 1)
        and not isinstance(padding, str)
        and all(pad < size for pad, size in zip(padding, weight.shape[2:], strict=True))
    )


class _Layer(NamedTuple):
    """The stride and the padding of a convolution, (rows, columns) each."""

    stride: tuple[int, int]
    padding: tuple[int, int]


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in the type of its images; the gradients of kernels and bias are in float32."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, layer: _Layer) -> Tensor:
        kernels = weight.to(images.dtype)
        ctx.save_for_backward(images, kernels)
        ctx.layer, ctx.type = layer, weight.dtype
        bias = None if bias is None else bias.to(images.dtype)
        return torch.conv2d(images, kernels, bias, layer.stride, layer.padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        images, kernels = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        needs_images, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            _image_gradient(gradient, images, kernels, ctx.layer) if needs_images else None,
            _kernel_gradient(gradient, images, kernels, ctx.layer).to(ctx.type) if needs_weight else None,
            gradient.sum((0, 2, 3), dtype=ctx.type) if needs_bias else None,
            None,
        )


def _image_gradient(gradient: Tensor, images: Tensor, kernels: Tensor, layer: _Layer) -> Tensor:
    """The gradient of the images: a convolution with the mirrored kernels, which is faster than the routine. With a
    stride, where float32 alone has a routine, it is that of the convolution without one, with zeros for the results
    that are left out."""
    if layer.stride != (1, 1) and images.dtype != torch.bfloat16:
        return _routine(gradient, images, kernels, layer, of_images=True)
    if layer.stride != (1, 1):
        size = [size + 2 * pad - of_kernel + 1 for size, pad, of_kernel in _sizes(images, kernels, layer)]
        spread = torch.empty((*images.shape[:2], *size), dtype=images.dtype, memory_format=torch.channels_last).zero_()
        spread[:, :, :: layer.stride[0], :: layer.stride[1]] = gradient
        gradient = spread
    border = [of_kernel - 1 - pad for _, pad, of_kernel in _sizes(images, kernels, layer)]
    return torch.conv2d(gradient, kernels.flip(2, 3), None, 1, border, 1, len(kernels))


def _sizes(images: Tensor, kernels: Tensor, layer: _Layer) -> Iterator[tuple[int, int, int]]:
    """(that of the images, the padding, that of the kernels), of rows and of columns."""
    return zip(images.shape[2:], layer.padding, kernels.shape[2:], strict=True)


def _kernel_gradient(gradient: Tensor, images: Tensor, kernels: Tensor, layer: _Layer) -> Tensor:
    """The gradient of the kernels, by strips of as many columns as oneDNN has a routine for: each that of narrow
    kernels, on images that are moved by where the strip begins."""
    height, width = kernels.shape[2:]
    # Maps lower than the kernels have to be padded beforehand: the routine does not add so many rows.
    above = layer.padding[0] if height > images.shape[2] else 0
    if width <= WIDEST_OF_ONEDNN and not above:
        return _routine(gradient, images, kernels, layer)
    found, step = [], min(width, WIDEST_OF_ONEDNN)
    for first in range(0, width, step):
        start = min(first, width - step)
        left = layer.padding[1] - start
        seen = layer.stride[1] * (gradient.shape[3] - 1) + step
        moved = F.pad(images, (left, seen - left - images.shape[3], above, above))
        strip = kernels[..., start : start + step].contiguous()
        columns = _routine(gradient, moved, strip, _Layer(layer.stride, (layer.padding[0] - above, 0)))
        found.append(columns[..., first - start :])
    return torch.cat(found, 3)


def _routine(gradient: Tensor, images: Tensor, kernels: Tensor, layer: _Layer, *, of_images: bool = False) -> Tensor:
    """torch's own gradient, of the kernels or of the images."""
    wanted, channels = [of_images, not of_images, False], len(kernels)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, images, kernels, [channels], *layer, [1, 1], False, [0, 0], channels, wanted
    )
    return found[0] if of_images else found[1]
