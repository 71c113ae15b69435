"""Batches of stored rows, pixels or activations: which, in which order, varied how."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.augment import Augmentation, augment, skip
from pipeline.device import sent
from pipeline.mixing import blend, mix
from pipeline.prefetch import fetch_ahead
from pipeline.splits import Rows


@dataclass(frozen=True)
class Batches:
    """Batches of `rows`, which `fetch` turns into inputs on `device`, done ahead by so many `workers`.

    With a `seed` they come shuffled anew each epoch, and the last batch is dropped where it is not full; without,
    in order and all. Order and augmentation are functions of (seed, epoch) and of nothing else. `weights` say how much
    each row counts in training, as `targets` say its class; without, all count alike.
    """

    fetch: Callable[[Rows], Tensor]
    rows: Rows
    targets: npt.NDArray[np.int64]
    batch_size: int
    device: torch.device
    seed: int | None = None
    augmentation: Augmentation | None = None
    workers: int = 0
    weights: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        if self.seed is None:
            return -(-len(self.rows) // self.batch_size)
        return max(len(self.rows) // self.batch_size, 1)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The (inputs, targets) of one epoch, from batch number `first` on. Targets are class numbers, and where the
        augmentation mixes pictures, each class's share."""
        for inputs, targets, _ in self.weighted_epoch(epoch, first):
            yield inputs, targets

    def weighted_epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The same with each row's weight (N), or None where all count alike. A picture that is mixed of two counts as
        the two do, by their shares in it."""
        rows = self.rows
        generator = torch.Generator()
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, epoch]).permutation(rows)
            generator.manual_seed(seed_for(self.seed, epoch))
        parts = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)][: len(self)]
        if self.augmentation is not None:
            for part in parts[:first]:
                skip(len(part), self.augmentation, generator)
        fetched = fetch_ahead(self.fetch, parts[first:], self.device, self.workers)
        for number, (part, inputs) in enumerate(zip(parts[first:], fetched, strict=True), first):
            targets = sent(torch.from_numpy(self.targets[part]), self.device)
            weights = None if self.weights is None else sent(torch.from_numpy(self.weights[part]), self.device)
            if self.augmentation is not None:
                inputs = augment(inputs, self.augmentation, generator)
                inputs, targets, weights = self._mixed(inputs, targets, weights, self.augmentation, [epoch, number])
            yield inputs, targets, weights

    def _mixed(
        self, inputs: Tensor, targets: Tensor, weights: Tensor | None, how: Augmentation, place: list[int]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if not how.mixup and not how.cutmix:
            return inputs, targets, weights
        random = np.random.default_rng([self.seed or 0, *place])
        mixed, shares, kept = mix(inputs, targets, int(self.targets.max()) + 1, how.mixup, how.cutmix, random)
        return mixed, shares, None if weights is None else blend(weights, kept)


def seed_for(seed: int, epoch: int) -> int:
    """A seed of its own for each (seed, epoch), unlike that of any near pair."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def fetch_pixels(pixels: npt.NDArray[np.uint8], device: torch.device) -> Callable[[Rows], Tensor]:
    """Rows of a pixel store as images; see `as_images`."""

    def fetch(rows: Rows) -> Tensor:
        return as_images(sent(torch.from_numpy(pixels[rows]), device))

    return fetch


def as_images(squares: Tensor) -> Tensor:
    """Squares (N, size, size, channels) of uint8 as images (N, channels, size, size), values 0 to 1, channels last in
    memory."""
    return squares.permute(0, 3, 1, 2) / 255


def fetch_activations(activations: Any, device: torch.device) -> Callable[[Rows], Tensor]:
    """Rows of an activation store, or of whatever is read by row numbers as one, as float32 (N, …)."""

    def fetch(rows: Rows) -> Tensor:
        return sent(torch.from_numpy(activations[rows]), device).float()

    return fetch
