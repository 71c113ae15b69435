"""Batches of stored rows, pixels or activations: which rows, in which order, with which augmentation.

The served model imports this file, which therefore imports neither manifest nor loader.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.augment import Augmentation, Chosen, augment, blend, mix, skip
from pipeline.ranks.deal import ALONE, Deal, Positions
from pipeline.system.arrays import Rows
from pipeline.system.device import to_device
from pipeline.system.parallel import in_parallel


@dataclass(frozen=True)
class Batches:
    """Batches of `rows`, which `fetch` turns into inputs on `device`, prefetched by this number of `workers`.

    With a `seed` they are shuffled anew each epoch, and a last batch that is not full is dropped; without, all rows
    come in order. Order and augmentation are functions of (seed, epoch) and of nothing else. `weights` say how much
    each row counts in training, as `targets` say its class; without, all count alike. If it `is_balanced`, an epoch has
    as many rows of each class, those of rare classes over and over. Where labels are soft, `shares` (rows, classes) are
    trained on in place of `targets`, their likeliest classes.

    Where several processes share each batch, by the `deal`, the inputs are those of this one's share; targets and
    weights are still those of the whole batch. The picture of a batch that is too small for all is seen by some only to
    keep them busy.
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
    is_balanced: bool = False
    shares: npt.NDArray[np.float32] | None = None
    deal: Deal = ALONE

    @property
    def labels(self) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
        """What each row is trained towards: its class number, or, where labels are soft, each class's share."""
        return self.targets if self.shares is None else self.shares

    def __len__(self) -> int:
        if self.seed is None:
            return -(-len(self.rows) // self.batch_size)
        return max(len(self.rows) // self.batch_size, 1)

    def dealt_by(self, deal: Deal) -> "Batches":
        """The same batches, shared by several processes."""
        return replace(self, deal=deal)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The (inputs, targets) of one epoch, from batch number `first` on. Targets are class numbers, or, if labels
        are soft or the augmentation mixes pictures, each class's share."""
        for inputs, targets, _ in self.weighted_epoch(epoch, first):
            yield inputs, targets

    def weighted_epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """The same with each row's weight (N), or None if all count alike. The weight of a mixed picture is that of
        its two pictures, by their shares in it."""
        rows = self.rows
        generator = torch.Generator()
        if self.seed is not None:
            random = np.random.default_rng([self.seed, epoch])
            rows = random.permutation(balanced_rows(rows, self.targets, random) if self.is_balanced else rows)
            generator.manual_seed(seed_for(self.seed, epoch))
        chunks = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)][: len(self)]
        if self.augmentation is not None:
            for chunk in chunks[:first]:
                skip(len(chunk), self.augmentation, generator)
        dealt = [self._dealt(len(chunk)) for chunk in chunks]
        mine = [chunk if one is None else chunk[one.needed] for chunk, one in zip(chunks, dealt, strict=True)]
        fetched = prefetch(self.fetch, mine[first:], self.device, self.workers)
        for index, (chunk, inputs) in enumerate(zip(chunks[first:], fetched, strict=True), first):
            share = dealt[index]
            targets = to_device(torch.from_numpy(self.labels[chunk]), self.device)
            weights = None if self.weights is None else to_device(torch.from_numpy(self.weights[chunk]), self.device)
            if self.augmentation is not None:
                chosen = None if share is None else Chosen(share.needed, len(chunk))
                inputs = augment(inputs, self.augmentation, generator, chosen)
                if self._mixes:
                    random = np.random.default_rng([self.seed or 0, epoch, index])
                    inputs, targets, kept = self._mix(inputs, targets, random, share)
                    weights = None if weights is None else blend(weights, kept)
            yield inputs, targets, weights

    @property
    def _mixes(self) -> bool:
        return self.augmentation is not None and bool(self.augmentation.mixup or self.augmentation.cutmix)

    def _dealt(self, count: int) -> "_Dealt | None":
        """What this process needs of a batch of `count`; None where it gets all of it."""
        if not self.deal.is_shared:
            return None
        share = self.deal.share(count)
        share = share if len(share) else np.zeros(1, dtype=np.int64)
        before = (share - 1) % count
        needed = np.unique(np.concatenate([share, before])) if self._mixes else share
        return _Dealt(needed, np.searchsorted(needed, share), np.searchsorted(needed, before))

    def _mix(
        self, inputs: Tensor, targets: Tensor, random: np.random.Generator, share: "_Dealt | None"
    ) -> tuple[Tensor, Tensor, float]:
        assert self.augmentation is not None
        classes = int(self.targets.max()) + 1 if self.shares is None else self.shares.shape[1]
        settings = classes, self.augmentation.mixup, self.augmentation.cutmix
        if share is None:
            return mix(inputs, targets, *settings, random)
        own, partners = (inputs[to_device(torch.from_numpy(one), self.device)] for one in (share.own, share.before))
        return mix(own, targets, *settings, random, partners)


@dataclass(frozen=True)
class _Dealt:
    """What a process needs of a batch, as positions in it: its share, and what its pictures are mixed with; and where
    among these its `own` pictures are, and those `before` them."""

    needed: Positions
    own: Positions
    before: Positions


def balanced_rows(rows: Rows, targets: npt.NDArray[np.int64], random: np.random.Generator) -> Rows:
    """As many rows, of each class that occurs the same number or one more: each row of a class equally often, or once
    more."""
    of_class = [rows[targets[rows] == label] for label in np.unique(targets[rows])]
    counts = [len(rows) // len(of_class) + (number < len(rows) % len(of_class)) for number in range(len(of_class))]
    chosen = [
        np.concatenate([random.permutation(members) for _ in range(-(-count // len(members)))])[:count]
        for members, count in zip(of_class, counts, strict=True)
    ]
    return np.concatenate(chosen)


def seed_for(seed: int, epoch: int) -> int:
    """A seed for each (seed, epoch), unrelated to those of similar pairs."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def prefetch(
    fetch: Callable[[Rows], Tensor], chunks: Sequence[Rows], device: torch.device, workers: int
) -> Iterator[Tensor]:
    """Yield `fetch(rows)` for each of `chunks`, in their order; the number of `workers` does not change the result.

    Workers are threads that fetch the next chunks meanwhile. On a GPU they use a CUDA stream of their own, so that
    copies overlap with computation. Without workers, a chunk is fetched when it is asked for.
    """
    if workers == 0:
        yield from map(fetch, chunks)
    elif device.type == "cuda":
        yield from _prefetch_on_stream(fetch, chunks, device, workers)
    else:
        yield from in_parallel(fetch, chunks, workers + 1, workers)


def fetch_pixels(pixels: npt.NDArray[np.uint8], device: torch.device) -> Callable[[Rows], Tensor]:
    """A function that fetches rows of a pixel store as images; see `as_images`."""

    def fetch(rows: Rows) -> Tensor:
        return as_images(to_device(torch.from_numpy(pixels[rows]), device))

    return fetch


def fetch_activations(activations: Any, device: torch.device) -> Callable[[Rows], Tensor]:
    """A function that fetches rows of stored activations, an array or the like, as float32 (N, …)."""

    def fetch(rows: Rows) -> Tensor:
        return to_device(torch.from_numpy(activations[rows]), device).float()

    return fetch


def as_images(squares: Tensor) -> Tensor:
    """Squares (N, size, size, channels) of uint8 as images (N, channels, size, size), values 0 to 1, channels last in
    memory."""
    return squares.permute(0, 3, 1, 2) / 255


def _prefetch_on_stream(
    fetch: Callable[[Rows], Tensor], chunks: Sequence[Rows], device: torch.device, workers: int
) -> Iterator[Tensor]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def fetch_on_stream(rows: Rows) -> tuple[Tensor, Any]:
        with torch.cuda.stream(stream):
            return fetch(rows), stream.record_event()

    for fetched, event in in_parallel(fetch_on_stream, chunks, workers + 1, workers):
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        fetched.record_stream(current)  # its memory must not be reused for the next batch while this one is in use
        yield fetched
