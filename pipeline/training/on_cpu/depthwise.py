"""The gradient of depthwise kernels on a CPU, as deep layers of mobile networks have them: wide kernels, small maps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# oneDNN has a routine of its own for kernels up to this width.
WIDEST_OF_ONEDNN = 3
# Up to as many pixels of the result `_kernel_gradient` is faster, whatever the number of channels.
LARGEST_MAP_PX = 16 * 16
# Whether torch has oneDNN's depthwise routines here; others would take far longer for as many channels.
HAS_ROUTINES = torch.backends.cpu.get_cpu_capability().startswith("AVX") and torch._C._has_mkldnn


class DepthwiseGradients(TorchFunctionMode):
    """A block in which the gradient of wide depthwise kernels on small maps is itself computed as a convolution.

    oneDNN computes it by a routine for convolutions of any kind, which takes up to five times as long. In a training
    step of lite0 at 128 px a sixth of the time goes there.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `function`, or what stands in for a convolution."""
        if function is torch.conv2d and not kwargs and len(args) == 7 and _is_wide_depthwise(*args):
            images, weight, bias, stride, padding, _, _ = args
            return _WideDepthwise.apply(images, weight, bias, tuple(stride), tuple(padding))
        return function(*args, **(kwargs or {}))


def _is_wide_depthwise(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    """Whether it has one wide kernel for each channel, of which a gradient is wanted."""
    return (
        HAS_ROUTINES
        and groups == len(weight) == images.shape[1] > 1
        and min(weight.shape[2:]) > WIDEST_OF_ONEDNN
        and weight.requires_grad
        and tuple(dilation) == (1, 1)
        and not isinstance(padding, str)
    )


class _WideDepthwise(torch.autograd.Function):
    """A depthwise convolution that knows a faster way to the gradient of its kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(images, weight, bias, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        images, weight = ctx.saved_tensors
        (gradient,) = gradients
        is_small = gradient.shape[2] * gradient.shape[3] <= LARGEST_MAP_PX
        needs_images, needs_weight, needs_bias, _, _ = ctx.needs_input_grad
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            images,
            weight,
            [len(weight)],
            ctx.stride,
            ctx.padding,
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [needs_images, needs_weight and not is_small, needs_bias and not is_small],
        )
        if is_small and needs_weight:
            of_weight = _kernel_gradient(images, gradient, weight.shape, ctx.stride, ctx.padding)
        if is_small and needs_bias:
            of_bias = gradient.sum((0, 2, 3))
        return of_images, of_weight, of_bias, None, None


def _kernel_gradient(
    images: Tensor, gradient: Tensor, shape: torch.Size, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """The gradient of kernels of this `shape` (channels, 1, height, width): the maps of each channel of each image are
    convolved with the gradient of the result as their kernel, and summed over the images."""
    (count, channels), (_, _, height, width) = images.shape[:2], shape
    kernels = _as_channels(gradient).transpose(0, 1)
    found = torch.conv2d(_as_channels(images), kernels, None, 1, padding, stride, count * channels)
    return found[:, :, :height, :width].reshape(count, channels, height, width).sum(0).unsqueeze(1)


def _as_channels(maps: Tensor) -> Tensor:
    """The maps of all images as the channels of one (1, images × channels, height, width), channels last in memory."""
    count, channels, height, width = maps.shape
    return maps.permute(2, 3, 0, 1).reshape(1, height, width, count * channels).permute(0, 3, 1, 2)
