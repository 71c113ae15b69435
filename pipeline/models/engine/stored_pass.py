"""A pass of pictures through the frozen layers whose activations are stored.

Where several processes work together, each computes a stretch of the rows, and the leader writes them all.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.augment import Augmentation, augment, skip
from pipeline.data.batches import prefetch
from pipeline.data.decode import Pixels
from pipeline.data.loader import prefetching_fetcher, rows_per_pass
from pipeline.models.cut import Halves
from pipeline.models.engine.helpers import opened
from pipeline.models.engine.spread import Spread, Work
from pipeline.models.network import Network
from pipeline.ranks.exchange import Sender, in_turn
from pipeline.ranks.team import deal, processes, together
from pipeline.system.arrays import MAPPED_BYTES, Rows, release_pages
from pipeline.system.console import track
from pipeline.system.device import choose_device, mixed_precision
from pipeline.system.errors import UserError

# Batches whose activations are being copied from the GPU while it computes the next ones.
IN_FLIGHT = 2
Dtype: TypeAlias = Literal["float16", "float32"]
Activations: TypeAlias = npt.NDArray[np.float16] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoreSettings:
    """How activations are computed and stored: `batch_size` pictures at a time on `device`, as numbers of `dtype`."""

    batch_size: int
    dtype: Dtype
    device: torch.device


@dataclass(frozen=True)
class Variation:
    """Images varied at random, batch by batch, by numbers that follow from the `seed`."""

    augmentation: Augmentation
    seed: int

    def after(self, done: int, batch_size: int) -> Callable[[Tensor], Tensor]:
        """A function that varies one batch after the other, once `done` images of whole batches have been varied."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(done // batch_size):
            skip(batch_size, self.augmentation, generator)
        return lambda images: augment(images, self.augmentation, generator)


def write_activations(
    stored: Activations,
    network: Network,
    pixels: Pixels,
    rows: Rows,
    settings: StoreSettings,
    variation: Variation | None = None,
    halves: Halves | None = None,
) -> None:
    """Write the body's last activations of these rows, in eval mode, into `stored` (rows, activations); each batch of
    images may be varied before. With `halves`, the activations are those that the lower one computes, by several
    processes where they share it. A GPU may compute those of several batches at once.

    Raises UserError if one is too large for float16, or is no number.
    """
    network.eval()
    count = _rows_at_once(pixels, settings)
    given = Given(below_of(network, halves), pixels, rows, settings, variation)
    if halves is not None and halves.work is not None and len(rows) >= settings.batch_size * processes():
        _write_together(stored, given, halves.work, count)
    else:
        write_arrays(stored, given.computed(slice(0, len(rows)), count))


def below_of(network: Network, halves: Halves | None) -> Callable[[Tensor], Tensor]:
    """What computes the activations that are stored."""
    return network.activations if halves is None else halves.below


@dataclass(frozen=True)
class Given:
    """What activations are computed from: the images of `rows` of `pixels`, which may be varied, by `below`."""

    below: Callable[[Tensor], Tensor]
    pixels: Pixels
    rows: Rows
    settings: StoreSettings
    variation: Variation | None = None

    @torch.no_grad()
    def computed(self, stretch: slice, count: int) -> Iterator[Activations]:
        """The activations of a `stretch` of the rows, which begins with a batch, `count` rows at a time."""
        settings, device = self.settings, self.settings.device
        chunks = [self.rows[start:end] for start, end in _steps(stretch, count)]
        fetch, workers = prefetching_fetcher(self.pixels, device)
        fetched = track(
            prefetch(fetch, chunks, device, workers),
            "precomputing activations",
            stretch.stop - stretch.start,
            "images",
            count,
        )
        if self.variation is not None:
            vary = self.variation.after(stretch.start, settings.batch_size)
            fetched = (_vary_batches(images, vary, settings.batch_size) for images in fetched)
        yield from compute_activations(self.below, fetched, settings.dtype)


def compute_share(work: Work, given: tuple[Rows, StoreSettings, Variation | None], count: int) -> None:
    """A helper's part of `write_activations`: the activations of its stretch of the rows, sent to the leader."""
    here, (rows, settings, variation) = opened(work), given
    settings = replace(settings, device=choose_device(work.device))
    sender, below = Sender(), below_of(here.network, here.halves)
    stretch = deal().stretch(len(rows), settings.batch_size)
    for computed in Given(below, here.pixels, rows, settings, variation).computed(stretch, count):
        sender.send(computed)
    sender.finish()


def _write_together(stored: Activations, given: Given, spread: Spread, count: int) -> None:
    """Every process computes a stretch of the rows; the leader writes them all."""
    stretches = deal().stretches(len(given.rows), given.settings.batch_size)
    steps = [list(_steps(stretch, count)) for stretch in stretches]

    def shape(number: int, turn: int) -> tuple[int, ...] | None:
        if turn >= len(steps[number]):
            return None
        start, end = steps[number][turn]
        return (end - start, *stored.shape[1:])

    with together(compute_share, spread.work, (given.rows, given.settings, given.variation), count):
        spread.provide()
        turns = in_turn(given.computed(stretches[0], count), shape, deal(), stored.dtype)
        places = [iter(one) for one in steps]
        _write(stored, ((next(places[number])[0], computed) for number, computed in turns))


def _rows_at_once(pixels: Pixels, settings: StoreSettings) -> int:
    """Whole batches, since for each of them random numbers may be drawn."""
    count = rows_per_pass(pixels, settings.batch_size, settings.device)
    return count - count % settings.batch_size


def _steps(stretch: slice, count: int) -> Iterator[tuple[int, int]]:
    for start in range(stretch.start, stretch.stop, count):
        yield start, min(start + count, stretch.stop)


def _vary_batches(images: Tensor, vary: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
    batches = [vary(batch) for batch in torch.split(images, batch_size)]
    return batches[0] if len(batches) == 1 else torch.cat(batches)


def write_arrays(stored: Activations, arrays: Iterable[Activations]) -> None:
    """Write all arrays, one after the other."""

    def placed() -> Iterator[tuple[int, Activations]]:
        done = 0
        for computed in arrays:
            yield done, computed
            done += len(computed)

    _write(stored, placed())


def _write(stored: Activations, placed: Iterable[tuple[int, Activations]]) -> None:
    """Write each array to its place, the first row that it is for."""
    written_bytes = 0
    for start, computed in placed:
        stored[start : start + len(computed)] = computed
        written_bytes += computed.nbytes
        if written_bytes > MAPPED_BYTES:
            release_pages(stored)
            written_bytes = 0


def _check_numbers(computed: Activations) -> Activations:
    if not np.isfinite(computed).all():
        if computed.dtype == np.float16 and not np.isnan(computed).any():
            raise UserError("Some activations are too large for float16; set precompute.dtype to float32.")
        raise UserError("Some activations are NaN or infinite, by the body's weights; give others in model.weights.")
    return computed


def compute_activations(
    compute: Callable[[Tensor], Tensor], batches: Iterable[Tensor], dtype: str
) -> Iterator[Activations]:
    """The activations of each batch; those of a GPU are copied while it computes the next two batches."""
    waiting: deque[tuple[Tensor, Any]] = deque()
    for inputs in batches:
        with mixed_precision(inputs.device):
            activations = compute(inputs).float().to(getattr(torch, dtype))
        on_gpu = inputs.device.type == "cuda"
        copied = activations.to("cpu", non_blocking=True)
        waiting.append((copied, torch.cuda.current_stream(inputs.device).record_event() if on_gpu else None))
        if len(waiting) > (IN_FLIGHT if on_gpu else 0):
            yield _wait_for(*waiting.popleft())
    while waiting:
        yield _wait_for(*waiting.popleft())


def _wait_for(activations: Tensor, copied: Any) -> Activations:
    if copied is not None:
        copied.synchronize()
    array: Activations = activations.numpy()
    return _check_numbers(array)
