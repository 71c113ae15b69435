"""Augmentation of a batch: each image warped, in one resampling, and relit in its own way; then pictures mixed."""

import importlib
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.system.device import to_device

Flip: TypeAlias = Literal["none", "sideways", "all"]
# The flips and quarter turns of a square, as 2×2 matrices: none, sideways, and the six others.
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
# The areas of boxes that are blanked, as shares of the picture, and how much longer one side may be than the other.
SMALLEST_BOX, LARGEST_BOX, LONGEST_BOX = 0.02, 0.2, 2.0
# Parts of a batch, each of which has an operation of TrivialAugment and its strength in common.
TRIVIAL_PARTS = 8
_WAYS = {"none": 1, "sideways": 2, "all": 8}


@dataclass(frozen=True)
class Augmentation:
    """How strongly images are augmented. `rotate_degrees` either way; `zoom` the largest magnification about the
    middle; `crop` the smallest share of a side that a random crop keeps; `lighting` the largest change of brightness
    and contrast; `probability` how often each of rotation, zoom, crop and lighting is applied. `mixup` and `cutmix`
    are applied last, to whole batches of training pictures; see `mix`. `perspective` is the largest change of depth
    from the middle to an edge, `erase` how often a box is blanked, and with `trivial` parts of a batch each undergo one
    operation of TrivialAugment (Müller & Hutter 2021)."""

    flip: Flip
    rotate_degrees: float
    zoom: float
    crop: float
    lighting: float
    probability: float
    mixup: float = 0.0
    cutmix: float = 0.0
    perspective: float = 0.0
    erase: float = 0.0
    trivial: bool = False


def augmentation(strength: float, **settings: Any) -> Augmentation:
    """The augmentation of these settings, with rotation, zoom, crop, lighting and perspective `strength` times as
    strong."""
    given = Augmentation(**settings)
    return replace(
        given,
        rotate_degrees=given.rotate_degrees * strength,
        zoom=1 + (given.zoom - 1) * strength,
        crop=1 - (1 - given.crop) * strength,
        lighting=given.lighting * strength,
        perspective=given.perspective * strength,
    )


@dataclass(frozen=True)
class Chosen:
    """The `positions` of some images in a batch of `count`."""

    positions: npt.NDArray[np.int64]
    count: int


def augment(
    images: Tensor, augmentation: Augmentation, generator: torch.Generator, chosen: Chosen | None = None
) -> Tensor:
    """Images (N, channels, size, size), values 0 to 1, each augmented by numbers drawn from `generator` (on the CPU).

    Beyond its edges an image is reflected. Images that are `chosen` from a batch are augmented as they would be in it.
    """
    if chosen is None:
        drawn = _draw(len(images), augmentation, generator)
    else:
        drawn = _draw(chosen.count, augmentation, generator).at(torch.from_numpy(chosen.positions))
    draws = to_device(drawn.draws, images.device)
    tilts = None if drawn.tilts is None else to_device(drawn.tilts, images.device)
    varied = warp(images, draws[:, :6].view(-1, 2, 3), tilts)
    if augmentation.lighting:
        varied = _relight(varied, draws[:, 6], draws[:, 7])
    if drawn.parts is not None and drawn.seeds is not None:
        varied = _apply_trivial(varied, drawn.parts, drawn.seeds)
    return varied if drawn.boxes is None else _erase(varied, to_device(drawn.boxes, images.device))


def skip(count: int, augmentation: Augmentation, generator: torch.Generator) -> None:
    """Draw from `generator` what `augment` would draw for `count` images."""
    _draw(count, augmentation, generator)


def warp(images: Tensor, matrices: Tensor, tilts: Tensor | None = None) -> Tensor:
    """Each image resampled through its own 2×3 matrix, which maps points of the result to points of the image; both
    run from -1 to 1 along either axis. With `tilts` (N, 2) a point (x, y) of the result lies at the depth
    1 + tilt · (x, y)."""
    size = [len(images), images.shape[1], images.shape[2], images.shape[3]]
    grid = F.affine_grid(matrices.to(images.device, images.dtype), size, align_corners=False)
    if tilts is not None:
        upright = torch.eye(2, 3, device=images.device, dtype=images.dtype).expand(len(images), 2, 3)
        points = F.affine_grid(upright, size, align_corners=False)
        grid = grid / (1 + (points * tilts.view(-1, 1, 1, 2)).sum(-1, keepdim=True))
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def take_view(images: Tensor, matrix: Tensor) -> Tensor:
    """Square images in the view of one 2×3 `matrix` (see `warp`): flips and quarter turns exactly and without
    resampling, which would take several times as long."""
    (a, b, x), (c, d, y) = matrix.tolist()
    if (x, y) != (0, 0) or (abs(a), abs(b), abs(c), abs(d)) not in ((1, 0, 0, 1), (0, 1, 1, 0)):
        return warp(images, matrix.expand(len(images), 2, 3))
    turned, rows, columns = (images, d, a) if a else (images.transpose(2, 3), b, c)
    return turned.flip([axis for axis, way in ((2, rows), (3, columns)) if way < 0])


def view_matrices(flip: Flip, crop: float, views: int) -> Tensor:
    """Matrices (at most `views`, 2, 3) of fixed views for test-time augmentation: the flips that `flip` allows,
    beginning with the unchanged image, then the four corners at `crop` of the side."""
    flips = [torch.cat([torch.tensor(way, dtype=torch.float32), torch.zeros(2, 1)], 1) for way in _ways(flip)]
    corners = [
        torch.tensor([[crop, 0, x * (1 - crop)], [0, crop, y * (1 - crop)]], dtype=torch.float32)
        for x in (-1, 1)
        for y in (-1, 1)
    ]
    return torch.stack((flips + (corners if crop < 1 else []))[:views])


def mix(
    images: Tensor,
    targets: Tensor,
    classes: int,
    mixup: float,
    cutmix: float,
    random: np.random.Generator,
    partners: Tensor | None = None,
) -> tuple[Tensor, Tensor, float]:
    """Images (N, channels, height, width) and their class numbers, or shares of the classes, mixed by mixup or cutmix:
    (images, shares of the `classes` (N, classes), the share that each picture keeps of itself).

    `mixup` and `cutmix` are alpha of the Beta distribution that the share is drawn from, 0 for off; if both are on,
    each is applied to half of the batches. A picture's partner is the one before it, the first one's the last; where
    `images` are a part of the batch that `targets` are of, their `partners` have to be given.
    """
    partners = images.roll(1, 0) if partners is None else partners
    shares = targets
    if targets.ndim == 1:
        shares = torch.zeros(len(targets), classes, device=targets.device).scatter_(1, targets.view(-1, 1), 1)
    is_cut = cutmix > 0 and (mixup == 0 or random.random() < 0.5)
    alpha = cutmix if is_cut else mixup
    kept = float(random.beta(alpha, alpha))
    if is_cut:
        top, bottom, left, right = _box(images.shape[2], images.shape[3], kept, random)
        kept = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    else:
        mixed = partners.mul_(1 - kept).add_(images * kept)
    return mixed, blend(shares, kept), kept


def blend(values: Tensor, kept: float) -> Tensor:
    """Values of a batch's pictures, mixed as the pictures are: `kept` of its own and the rest of the one before it."""
    return values.roll(1, 0).mul_(1 - kept).add_(values * kept)


def _ways(flip: Flip) -> tuple[tuple[tuple[int, int], tuple[int, int]], ...]:
    return _EIGHT_WAYS[: _WAYS[flip]]


class _Draws(NamedTuple):
    """What was drawn for a batch: for each image (N, 8) a 2×3 matrix, the change of its brightness, and the factor of
    its contrast; and where they are asked for its tilt (N, 2), its box (N, 4), middle and half sides, and its part of
    the batch (N), each of which has one of `seeds`."""

    draws: Tensor
    tilts: Tensor | None = None
    boxes: Tensor | None = None
    parts: Tensor | None = None
    seeds: Tensor | None = None

    def at(self, positions: Tensor) -> "_Draws":
        """What was drawn for the images at these positions."""
        tilts, boxes, parts = (None if one is None else one[positions] for one in (self.tilts, self.boxes, self.parts))
        return _Draws(self.draws[positions], tilts, boxes, parts, self.seeds)


def _draw(count: int, augmentation: Augmentation, generator: torch.Generator) -> _Draws:
    """Nothing is drawn for what is off."""
    draws = _draw_warps_and_light(count, augmentation, generator)
    tilts = boxes = parts = seeds = None
    if augmentation.perspective:
        acts = (torch.rand(count, 1, generator=generator) < augmentation.probability).float()
        tilts = (torch.rand(count, 2, generator=generator) * 2 - 1) * augmentation.perspective * acts
    if augmentation.erase:
        boxes = _random_boxes(count, augmentation.erase, generator)
    if augmentation.trivial:
        parts = torch.randint(TRIVIAL_PARTS, (count,), generator=generator)
        seeds = torch.randint(2**31, (TRIVIAL_PARTS,), generator=generator)
    return _Draws(draws, tilts, boxes, parts, seeds)


def _random_boxes(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """Of a share of the images `probability`; those of the others have no area. Sides as in Zhong et al. 2020, "Random
    Erasing Data Augmentation"."""
    acts, area, shape, x, y = torch.rand(5, count, generator=generator)
    share = (SMALLEST_BOX + (LARGEST_BOX - SMALLEST_BOX) * area) * (acts < probability)
    ratio = torch.exp((shape * 2 - 1) * math.log(LONGEST_BOX))
    return torch.stack([x * 2 - 1, y * 2 - 1, (share * ratio).sqrt(), (share / ratio).sqrt()], 1)


def _erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Each box filled with its image's mean."""
    rows, columns = (torch.linspace(-1, 1, size, device=images.device) for size in images.shape[2:])
    x, y, half_width, half_height = boxes.view(-1, 4, 1, 1).unbind(1)
    inside = ((columns.view(1, 1, -1) - x).abs() < half_width) & ((rows.view(1, -1, 1) - y).abs() < half_height)
    return torch.where(inside.unsqueeze(1), images.mean((2, 3), keepdim=True), images)


@cache
def _trivial() -> Any:
    """torchvision's TrivialAugment, loaded where it is asked for: served models load this file, and start a second
    earlier without it."""
    transforms = importlib.import_module("torchvision.transforms.v2")
    return transforms.TrivialAugmentWide(interpolation=transforms.InterpolationMode.BILINEAR)


def _apply_trivial(images: Tensor, parts: Tensor, seeds: Tensor) -> Tensor:
    """Each part of the batch goes through torchvision's TrivialAugment once, seeded by its own seed."""
    varied = images.clone()
    with torch.random.fork_rng(devices=[]):
        for number, seed in enumerate(seeds.tolist()):
            rows = (parts == number).nonzero().flatten()
            if len(rows):
                torch.default_generator.manual_seed(seed)  # torch's own would seed every device
                where = to_device(rows, images.device)
                varied[where] = _trivial()(images[where]).clamp(0, 1)
    return varied


def _draw_warps_and_light(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    matrices = _random_warps(count, augmentation, generator).flatten(1)
    lighting = augmentation.lighting
    if not lighting:
        return torch.cat([matrices, torch.zeros(count, 1), torch.ones(count, 1)], 1)
    acts, brightness, contrast = torch.rand(3, count, generator=generator)
    acts = (acts < augmentation.probability).float()
    shift = (brightness * 2 - 1) * lighting / 2 * acts
    scale = torch.exp((contrast * 2 - 1) * math.log1p(lighting) * acts)
    return torch.cat([matrices, shift.view(-1, 1), scale.view(-1, 1)], 1)


def _random_warps(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    def acts() -> Tensor:
        return torch.rand(count, generator=generator) < augmentation.probability

    radians = uniform(-1, 1) * math.radians(augmentation.rotate_degrees) * acts()
    share = torch.where(acts(), 1 / uniform(1, augmentation.zoom), 1.0)
    kept = torch.where(acts(), uniform(augmentation.crop, 1), 1.0)
    offset = (1 - kept) * torch.stack([uniform(-1, 1), uniform(-1, 1)])
    ways = torch.tensor(_ways(augmentation.flip), dtype=torch.float32)
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


def _box(height: int, width: int, kept: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box about a random point, whose area is the share of the picture that is not
    `kept`, before it is cut off at the edges."""
    x, y = int(random.integers(width)), int(random.integers(height))
    half = 0.5 * math.sqrt(1 - kept)
    half_width, half_height = int(half * width), int(half * height)
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)
