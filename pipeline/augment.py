"""Augmentation on the batch: each image warped and lit in its own way, in one resampling."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.device import sent

Flip: TypeAlias = Literal["none", "sideways", "all"]

# The eight flips and quarter turns of a square, as 2×2 matrices. The first is none, the first two are sideways.
_EIGHT_WAYS = (
    ((1, 0), (0, 1)),
    ((-1, 0), (0, 1)),
    ((1, 0), (0, -1)),
    ((-1, 0), (0, -1)),
    ((0, 1), (1, 0)),
    ((0, -1), (1, 0)),
    ((0, 1), (-1, 0)),
    ((0, -1), (-1, 0)),
)
_WAYS = {"none": 1, "sideways": 2, "all": 8}


@dataclass(frozen=True)
class Augmentation:
    """How far images are varied. `rotate_degrees` either way; `zoom` the largest magnification about the middle;
    `crop` the smallest share of a side that a crop anywhere in the image keeps; `lighting` the largest change of
    brightness and contrast; `probability` how often each of rotation, zoom, crop and lighting acts. `mixup` and
    `cutmix` act on whole batches of training pictures, after all else; see `mixing`."""

    flip: Flip
    rotate_degrees: float
    zoom: float
    crop: float
    lighting: float
    probability: float
    mixup: float = 0.0
    cutmix: float = 0.0


def augmentation(strength: float, **settings: Any) -> Augmentation:
    """The augmentation of these settings, with rotation, zoom, crop and lighting `strength` times as strong."""
    how = Augmentation(**settings)
    return replace(
        how,
        rotate_degrees=how.rotate_degrees * strength,
        zoom=1 + (how.zoom - 1) * strength,
        crop=1 - (1 - how.crop) * strength,
        lighting=how.lighting * strength,
    )


def augment(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Images (N, channels, size, size), values 0 to 1, each varied by numbers drawn from `generator` (on the CPU).

    What lies outside the image is filled by reflection.
    """
    draws = _draw(len(images), how, generator)
    there = sent(draws, images.device)
    warped = warp(images, there[:, :6].view(-1, 2, 3))
    return _relight(warped, there[:, 6], there[:, 7]) if how.lighting else warped


def skip(count: int, how: Augmentation, generator: torch.Generator) -> None:
    """Draw from `generator` what `augment` would draw for `count` images, and vary nothing."""
    _draw(count, how, generator)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Each image resampled through its own 2×3 matrix, which maps places in the result to places in the image;
    both run from -1 to 1 along either axis."""
    size = [len(images), images.shape[1], images.shape[2], images.shape[3]]
    grid = F.affine_grid(matrices.to(images.device, images.dtype), size, align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def view_matrices(flip: Flip, crop: float, views: int) -> Tensor:
    """Matrices (at most `views`, 2, 3) of fixed views for test-time augmentation: the flips that `flip` allows,
    the image as it is first among them, then the four corners at `crop` of the side."""
    flips = [torch.cat([torch.tensor(way, dtype=torch.float32), torch.zeros(2, 1)], 1) for way in _ways(flip)]
    corners = [
        torch.tensor([[crop, 0, x * (1 - crop)], [0, crop, y * (1 - crop)]], dtype=torch.float32)
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return torch.stack((flips + (corners if crop < 1 else []))[:views])


def _ways(flip: Flip) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    return _EIGHT_WAYS[: _WAYS[flip]]


def _draw(count: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    """For each image (`count`, 8) a 2×3 matrix, the change of its brightness, and the factor of its contrast."""
    matrices = _random_warps(count, how, generator).flatten(1)
    if not how.lighting:
        return torch.cat([matrices, torch.zeros(count, 1), torch.ones(count, 1)], 1)
    acts, brightness, contrast = torch.rand(3, count, generator=generator)
    acts = (acts < how.probability).float()
    shift = (brightness * 2 - 1) * how.lighting / 2 * acts
    scale = torch.exp((contrast * 2 - 1) * math.log1p(how.lighting) * acts)
    return torch.cat([matrices, shift.view(-1, 1), scale.view(-1, 1)], 1)


def _random_warps(count: int, how: Augmentation, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    def acts() -> Tensor:
        return torch.rand(count, generator=generator) < how.probability

    radians = uniform(-1, 1) * math.radians(how.rotate_degrees) * acts()
    share = torch.where(acts(), 1 / uniform(1, how.zoom), 1.0)
    kept = torch.where(acts(), uniform(how.crop, 1), 1.0)
    offset = (1 - kept) * torch.stack([uniform(-1, 1), uniform(-1, 1)])
    ways = torch.tensor(_ways(how.flip), dtype=torch.float32)
    turned = ways[torch.randint(len(ways), (count,), generator=generator)]
    cosine, sine = torch.cos(radians), torch.sin(radians)
    rotation = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)
    linear = rotation @ turned * (share * kept).view(-1, 1, 1)
    return torch.cat([linear, offset.T.unsqueeze(-1)], -1)


def _relight(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The images themselves, changed in place."""
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    shape = (len(images), 1, 1, 1)
    return images.sub_(middle).mul_(scale.view(shape)).add_(middle).add_(shift.view(shape)).clamp_(0, 1)
