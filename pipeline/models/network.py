"""The network: a timm body under a new head, with its own normalisation."""

import torch
from torch import Tensor, nn

from pipeline.models.body import Body


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

    def reset_head(self, hidden: int, dropout: float) -> None:
        """Replace the head by a new, untrained one, for as many classes."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        self.head = build_head(self.width, last.out_features, hidden, dropout)

    def normalise(self, images: Tensor) -> Tensor:
        """The body's input: three channels, with the mean and spread that it was pretrained on."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

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


def build_head(activations: int, classes: int, hidden: int, dropout: float) -> nn.Sequential:
    """fastai's head: BatchNorm, dropout, a hidden layer, and the same again before the logits; with `hidden` 0,
    BatchNorm, dropout and one linear layer. The last layer starts at zero, so that no class is preferred."""
    layers: list[nn.Module] = []
    width = activations
    if hidden:
        layers += [nn.BatchNorm1d(width), nn.Dropout(dropout / 2), nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    last = nn.Linear(width, classes)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.BatchNorm1d(width), nn.Dropout(dropout), last)
