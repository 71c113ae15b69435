"""How near training and precompute come to what the network alone can do on this machine.

    python -m benchmarks.throughput [--parts PART ...] [--backbone NAME] [--image-px N] [--batch-size N]

Every ratio is the median of repeats that are interleaved in one process, on random pictures and random weights:

* fine_tune: an epoch of `fit` with all augmentation on, from a pixel store, against steps on one batch in memory;
* precompute: activations of a pixel store, written to disk, against the body's forward passes on one batch in memory;
* jpegs: JPEGs of 256 px that lie in files, decoded to squares as they are when there is no store, and into a store;
* head: an epoch of the head on stored activations, against the barest loop, and against an epoch without a store;
* late: an epoch of the late group and the head on stored feature maps, against one through the whole network.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.side_by_side.results import Comparison
from pipeline.cache.row_file import write_rows
from pipeline.data.augment import Augmentation
from pipeline.data.batches import prefetch
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.loader import Split, pixel_batches, prefetching_fetcher
from pipeline.data.manifest import build_manifest
from pipeline.data.nvjpeg import choose_decoder
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import FILE, StoredPixels, open_pixels
from pipeline.models.activations import (
    StoreSettings,
    activation_batches,
    open_activations,
    read_activations,
    write_activations,
)
from pipeline.models.body import build_body
from pipeline.models.cut import cut_network
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import Network
from pipeline.system.device import choose_device, mixed_precision
from pipeline.training.fit import Phase, fit
from pipeline.training.optim import head_optimizer, thaw, thaw_above
from pipeline.training.records import EpochRecord
from pipeline.training.schedule import group_rates
from pipeline.training.step import steps_of, train_step

HOW = Augmentation("sideways", 10, 1.1, 0.9, 0.2, 0.75)
CLASSES, VALID, JPEGS = 10, 64, 16_384
GROUP, UNIT = "Against the bare limit", "images/s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--image-px", type=int, default=0, help="128 on a CPU, 224 on a GPU")
    parser.add_argument("--batch-size", type=int, default=0, help="32 on a CPU, 128 on a GPU")
    parser.add_argument("--steps", type=int, default=0, help="batches an epoch: 8 on a CPU, 100 on a GPU")
    parser.add_argument("--hidden", type=int, default=512, help="units of the head's hidden layer, 0 for a linear head")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="a file to write the ratios to")
    given = parser.parse_args()
    device = choose_device("auto")
    on_gpu = device.type == "cuda"
    given.image_px = given.image_px or (224 if on_gpu else 128)
    given.batch_size = given.batch_size or (128 if on_gpu else 32)
    given.steps = given.steps or (100 if on_gpu else 8)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{given.backbone}, {given.image_px} px, batches of {given.batch_size}, on {where}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THAW_CACHE"] = folder
        found = []
        pixels = random_store(Path(folder), given.steps * given.batch_size + VALID, given.image_px)
        for part in given.parts:
            torch.manual_seed(0)
            network = Network(build_body(given.backbone, given.image_px), CLASSES, given.hidden, 0.5).to(device)
            found += PARTS[part](network, pixels, given.batch_size, device, given.repeats)
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")


def random_store(folder: Path, count: int, image_px: int) -> StoredPixels:
    """A pixel store of noise."""
    random = np.random.default_rng(0)
    shape = (image_px, image_px, 3)
    write_rows(
        folder / "noise" / FILE,
        (count, *shape),
        lambda done: (random.integers(0, 256, (1, *shape), dtype=np.uint8) for _ in range(done, count)),
    )
    return StoredPixels(folder / "noise")


def measure_fine_tune(network, pixels, batch_size, device, repeats) -> list[Comparison]:
    """Part `fine_tune`."""
    split = split_of(pixels)
    train, valid = pixel_batches(pixels, split, HOW, batch_size, device, 0)
    optimizer = thaw(network, "none", group_rates(1e-4, 10), 0.01)
    images, targets = one_batch(pixels, batch_size, device)
    step = steps_of(network, optimizer)  # on a GPU a graph

    def bare() -> None:
        training_mode(network)
        for _ in range(len(train)):
            step(images, targets, None)

    epochs = fit(
        Phase(network, optimizer, train, valid, [repeats + 1])
    )  # of one training, which captures its step once
    return report(
        "fine-tuning epoch",
        "bare steps",
        len(train) * batch_size,
        bare,
        lambda _: next(epochs).seconds,
        repeats,
        device,
    )


def measure_precompute(network, pixels, batch_size, device, repeats) -> list[Comparison]:
    """Part `precompute`."""
    rows = np.arange(len(pixels) - VALID)
    images, _ = one_batch(pixels, batch_size, device)
    place = Path(os.environ["THAW_CACHE"]) / "activations.npy"

    @torch.no_grad()
    def bare() -> None:
        network.eval()
        for _ in range(0, len(rows), batch_size):
            with mixed_precision(device):
                network.activations(images)

    def precompute(_: int) -> float:
        stored = np.lib.format.open_memmap(place, "w+", np.float16, (len(rows), network.width))
        started = time.perf_counter()
        write_activations(stored, network, pixels, rows, StoreSettings(batch_size, "float16", device))
        return time.perf_counter() - started

    return report("precompute", "forward passes", len(rows), bare, precompute, repeats, device)


def measure_head(network, pixels, batch_size, device, repeats) -> list[Comparison]:
    """Part `head`."""
    split = split_of(pixels)
    whole_train, whole_valid = pixel_batches(pixels, split, HOW, batch_size, device, 0)
    optimizer = thaw(network, "body", {"head": 1e-3}, 0.01)
    frozen = statistics.median(
        epoch_of(Phase(network, optimizer, whole_train, whole_valid, [1]), number).images_per_second
        for number in range(3)
    )
    key_parts = {"benchmark": "throughput"}
    stored = read_activations(
        open_activations(network, pixels, key_parts, StoreSettings(batch_size, "float16", device))
    )
    # As many rows as an epoch of some seconds has.
    stored = np.resize(stored, (max(len(stored), 200 * batch_size) + VALID, network.width))
    split = split_of(stored)
    train, valid = activation_batches(stored, split, batch_size, device, 0)
    optimizer = head_optimizer(network.head, 1e-3, 0.01)
    resident = torch.from_numpy(stored).to(device).float()
    targets = torch.from_numpy(split.targets).to(device)

    def bare() -> None:
        network.head.train()
        order = torch.randperm(len(split.train), device=device)
        for chosen in order[: len(train) * batch_size].split(batch_size):
            with mixed_precision(device):
                logits = network.head(resident[chosen])
            loss = F.cross_entropy(logits.float(), targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def epoch(number: int) -> float:
        return epoch_of(Phase(network.head, optimizer, train, valid, [1]), number).seconds

    found = report("head epoch", "barest loop", len(train) * batch_size, bare, epoch, repeats, device)
    rate = found[0].thaw
    print(f"  and {rate / frozen:,.0f} times as fast as an epoch of the head without a store ({frozen:,.0f} images/s)")
    of = f"{network.body.default_cfg['architecture']}, {pixels.shape[1]} px"
    return [*found, Comparison(GROUP, "head epoch against one without a store", of, rate / frozen, rate, frozen, UNIT)]


def measure_late(network, pixels, batch_size, device, repeats) -> list[Comparison]:
    """Part `late`."""
    split, rates = split_of(pixels), {"late": 1e-4, "head": 1e-3}
    halves = cut_network(network, "late", pixels.shape[1])
    key_parts = {"benchmark": "throughput", "cut": "late"}
    stored = read_activations(
        open_activations(network, pixels, key_parts, StoreSettings(batch_size, "float16", device), halves)
    )
    mb = stored.nbytes / len(stored) / 1e6
    print(f"stored in front of the late group: {' x '.join(map(str, halves.shape))}, {mb:.3f} MB a picture in float16")
    above, optimizer = thaw_above(network, "late", pixels.shape[1], "early", rates, 0.01)
    train, valid = activation_batches(stored, split, batch_size, device, 0)
    whole_train, _ = pixel_batches(pixels, split, HOW, batch_size, device, 0)
    whole_optimizer = thaw(network, "early", rates, 0.01)

    def whole() -> None:
        training_mode(network, "body")
        for images, targets in whole_train.epoch(0):
            train_step(network, whole_optimizer, images, targets)

    def epoch(number: int) -> float:
        moments = fit(Phase(above, optimizer, train, valid, [1], fixed_statistics="body"), epochs_before=number)
        return next(moments).seconds

    against = "through the whole network, the early group frozen"
    return report("epoch of late and head", against, len(train) * batch_size, whole, epoch, repeats, device)


def measure_jpegs(network, pixels, batch_size, device, repeats) -> list[Comparison]:
    """Part `jpegs`."""
    decoder = choose_decoder("auto", device)
    root = Path(os.environ["THAW_CACHE"]) / "pictures"
    random = np.random.default_rng(0)
    for number in range(JPEGS if decoder == "nvjpeg" else JPEGS // 16):
        (root / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize((256, 256)).save(root / f"class {number % 2}" / f"{number}.jpg", quality=90)
    manifest = build_manifest(list_source(str(root), [".jpg"]), 0.2, 0.2, 0.0, 0)
    decoded = DecodedPixels(manifest, pixels.shape[1], "crop", decoder)
    chunks = list(np.array_split(np.arange(len(decoded)), max(len(decoded) // 256, 1)))
    rates = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        fetch, workers = prefetching_fetcher(decoded, device)
        for _ in prefetch(fetch, chunks, device, workers):
            pass
        wait_for(device)
        rates.append(len(decoded) / (time.perf_counter() - started))
    started = time.perf_counter()
    open_pixels(manifest, pixels.shape[1], "crop", decoder=decoder)
    built = len(decoded) / (time.perf_counter() - started)
    print(f"JPEGs, {decoder}: {statistics.median(rates[1:]):,.0f} images/s to the device, {built:,.0f} into a store")
    return []


def epoch_of(phase: Phase, number: int) -> EpochRecord:
    """Train one epoch, after `number` others."""
    record = next(iter(fit(phase, epochs_before=number)))
    assert isinstance(record, EpochRecord)
    return record


def split_of(stored) -> Split:
    """The last VALID rows to validate on, the others to train on, with classes at random."""
    targets = np.random.default_rng(1).integers(0, CLASSES, len(stored))
    return Split(np.arange(len(stored) - VALID), np.arange(len(stored) - VALID, len(stored)), targets)


def one_batch(pixels, batch_size, device):
    """(images, targets), in the device's memory."""
    images = torch.from_numpy(pixels[:batch_size]).to(device).permute(0, 3, 1, 2) / 255
    return images, torch.arange(batch_size, device=device) % CLASSES


def report(
    what: str,
    against: str,
    images: int,
    bare: Callable[[], None],
    real: Callable[[int], float],
    repeats: int,
    device: torch.device,
) -> list[Comparison]:
    """Time both in turns, print the medians, and give them; one round of each is not counted."""
    bare_rates, rates = [], []
    for number in range(repeats + 1):
        wait_for(device)
        started = time.perf_counter()
        bare()
        wait_for(device)
        bare_rates.append(images / (time.perf_counter() - started))
        rates.append(images / real(number))
    ratios = [rate / bare_rate for rate, bare_rate in zip(rates[1:], bare_rates[1:], strict=True)]
    rate = statistics.median(rates[1:])
    print(
        f"{what}: {rate:,.0f} images/s, {against} {statistics.median(bare_rates[1:]):,.0f}, ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )
    bare_rate, ratio = statistics.median(bare_rates[1:]), statistics.median(ratios)
    return [
        Comparison(
            GROUP, f"{what} against {against}", "", ratio, rate, bare_rate, UNIT, low=min(ratios), high=max(ratios)
        )
    ]


def wait_for(device: torch.device) -> None:
    """Until all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


PARTS = {
    "fine_tune": measure_fine_tune,
    "precompute": measure_precompute,
    "jpegs": measure_jpegs,
    "head": measure_head,
    "late": measure_late,
}

if __name__ == "__main__":
    main()
