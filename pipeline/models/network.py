"""The network: a timm body under a new head, with its own normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.body import Body

# Pictures times pixels from which a GPU makes up for the kernels that cuDNN compiles for depthwise convolutions whose
# channels lie last: by an H200 some 60,000 pictures of 224 px for each shape of batch, of which a training has two.
MANY_PIXELS = 6_000_000_000


class Network(nn.Module):
    """Images (N, 1 or 3, height, width), values 0 to 1, to logits (N, classes).

    `width` is the number of activations that the head takes. The network normalises images and repeats grey ones over
    three channels itself, so that no caller can forget it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: Body, classes: int, head_hidden: int, head_dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(body.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(body.std).view(1, 3, 1, 1))
        self.width = body.activations
        self.body = body.module
        self.head = build_head(body.activations, classes, head_hidden, head_dropout)
        self.is_channels_last = False
        self.lay_out(True)

    def move_to(self, device: torch.device, pixels: int) -> "Network":
        """Itself on this device, laid out in memory for so many `pixels` of pictures that it will see there."""
        self.lay_out(channels_last_pays(self.body, device, pixels))
        return self.to(device)

    def lay_out(self, is_channels_last: bool) -> None:
        """Have the weights, and from now on images, in memory with their channels last, or with their width last."""
        if is_channels_last == self.is_channels_last:
            return
        self.is_channels_last = is_channels_last
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.ndim == 4:
                # A copy: torch takes the layout of a tensor with one channel for the one asked for, whatever it is.
                tensor.data = torch.empty_like(tensor.data, memory_format=layout).copy_(tensor.data)

    def reset_head(self, hidden: int, dropout: float) -> None:
        """Replace the head by a new, untrained one, for as many classes."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        self.head = build_head(self.width, last.out_features, hidden, dropout)

    def normalise(self, images: Tensor) -> Tensor:
        """The body's input: three channels, with the mean and spread that it was pretrained on."""
        layout = torch.channels_last if self.is_channels_last else torch.contiguous_format
        return ((images - self.mean) / self.std).contiguous(memory_format=layout)

    def activations(self, images: Tensor) -> Tensor:
        """The body's last activations (N, activations): the head's input."""
        activations: Tensor = self.body(self.normalise(images))
        return activations

    def with_activations(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The head's input, and the logits."""
        activations = self.activations(images)
        return activations, self.head(activations)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.with_activations(images)[1]


def channels_last_pays(body: nn.Module, device: torch.device, pixels: int) -> bool:
    """Whether this body is faster in all with the channels last in memory. On GPUs depthwise convolutions are twice as
    fast then, but for every new shape of batch cuDNN compiles them first: 2 s for a pass of lite0, 11 s for a step."""
    is_depthwise = (isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1 for one in body.modules())
    return device.type != "cuda" or pixels >= MANY_PIXELS or not any(is_depthwise)


def build_head(activations: int, classes: int, hidden: int, dropout: float) -> nn.Sequential:
    """fastai's head: BatchNorm, dropout, a hidden layer, and the same again before the logits; with `hidden` 0,
    BatchNorm, dropout and one linear layer. The last layer starts at zero, so that no class is preferred."""
    layers: list[nn.Module] = []
    width = activations
    if hidden:
        layers += [nn.BatchNorm1d(width), Dropout(dropout / 2), nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    last = nn.Linear(width, classes)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.BatchNorm1d(width), Dropout(dropout), last)


class Dropout(nn.Dropout):
    """torch's dropout, which takes a CPU a third of the time: with torch's own, a head on stored activations
    spends a sixth of its training on random numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """`input`, masked in train mode."""
        if not self.training or self.p == 0 or input.is_cuda:
            return super().forward(input)
        return input * dropout_mask(input.shape, self.p, input.device)


def dropout_mask(
    shape: Sequence[int], dropout: float, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Zeros at random, each with the probability `dropout` (on a CPU to the nearest of 2**16), and 1 / (1 - dropout)
    elsewhere; on a CPU the very mask that `Dropout` draws."""
    if device.type == "cuda":
        return torch.empty(shape, device=device).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64)
    # A draw of 64 bits is four numbers of 16.
    numbers = drawn.random_(-(2**63), None, generator=generator).view(torch.int16)[:count].view(*shape)
    return (numbers >= round(dropout * 2**16) - 2**15) / (1 - dropout)
