"""Pictures of a batch mixed with each other, and their targets with them.

mixup: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". cutmix: Yun et al. 2019, "CutMix: Regularization
Strategy to Train Strong Classifiers with Localizable Features". Both as in torchvision.transforms.v2, which cannot be
given a generator: each picture is mixed with the one before it, all of a batch by the same share.
"""

import math

import numpy as np
import torch
from torch import Tensor


def mix(
    images: Tensor, targets: Tensor, classes: int, mixup: float, cutmix: float, random: np.random.Generator
) -> tuple[Tensor, Tensor, float]:
    """(images (N, channels, height, width), shares of the `classes` (N, classes), the share that each picture keeps of
    itself) from images and class numbers.

    `mixup` and `cutmix` are alpha of the Beta distribution that the share comes from, 0 for off; where both are on,
    each has half of the batches.
    """
    shares = torch.zeros(len(targets), classes, device=targets.device).scatter_(1, targets.view(-1, 1), 1)
    is_cut = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    alpha = cutmix if is_cut else mixup
    kept = float(random.beta(alpha, alpha))
    if is_cut:
        top, bottom, left, right = _box(images.shape[2], images.shape[3], kept, random)
        kept = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    else:
        mixed = blend(images, kept)
    return mixed, blend(shares, kept), kept


def blend(values: Tensor, kept: float) -> Tensor:
    """What each picture of a batch has one of, mixed as the pictures are: `kept` of its own, the rest of the one before
    it."""
    return values.roll(1, 0).mul_(1 - kept).add_(values * kept)


def _box(height: int, width: int, kept: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box about a place anywhere, cut off at the edges, which would else leave `kept`
    of the picture."""
    x, y = int(random.integers(width)), int(random.integers(height))
    half = 0.5 * math.sqrt(1 - kept)
    half_width, half_height = int(half * width), int(half * height)
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)
