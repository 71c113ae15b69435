"""Where the time goes from JPEG files to squares in a GPU's memory, or in a store.

    python -m benchmarks.jpegs [--image-px N] [--count N] [--repeats N]

JPEGs of 256 px, and then as many of different sizes, are in files that the operating system has in memory. Each line is
images/s, the median of the repeats. On a CPU the same is done with torchvision's decoder for CPUs.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.cache.hashing import file_checksum
from pipeline.cache.row_file import write_rows
from pipeline.data.batches import fetch_pixels, prefetch
from pipeline.data.decoded_pixels import ROWS_OF_A_GPU, DecodedPixels
from pipeline.data.loader import prefetching_fetcher
from pipeline.data.manifest import build_manifest
from pipeline.data.nvjpeg import decode_squares, to_squares
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import FILE, open_pixels
from pipeline.system.device import choose_device

SIDES_PX = (192, 320)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-px", type=int, default=224)
    parser.add_argument("--count", type=int, default=8_192)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    device = choose_device("auto")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{given.count:,} JPEGs to {given.image_px} px on {where}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THAW_CACHE"] = folder
        for what, sides in (("of one size", (256, 257)), ("of different sizes", SIDES_PX)):
            root = Path(folder) / what
            write_jpegs(root, given.count, sides)
            print(f"\nJPEGs {what}", flush=True)
            measure(root, given.image_px, given.count, given.repeats, device)


def write_jpegs(root: Path, count: int, sides: tuple[int, int]) -> None:
    """Smooth noise in two classes; each side is drawn from a range."""

    def write(number: int) -> None:
        random = np.random.default_rng(number)
        small = Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize(random.integers(*sides, 2).tolist()).save(root / f"{number % 2}" / f"{number}.jpg", quality=90)

    for label in ("0", "1"):
        (root / label).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(count)))


def measure(root: Path, image_px: int, count: int, repeats: int, device: torch.device) -> None:
    """Measure each step alone, and all of them."""
    manifest = build_manifest(list_source(str(root), [".jpg"]), 0.2, 0.2, 0.0, 0)
    rows = np.arange(count)
    chunks = [rows[start : start + ROWS_OF_A_GPU] for start in range(0, count, ROWS_OF_A_GPU)]

    def show(what: str, work: Callable[[], object]) -> None:
        print(f"  {what}: {rate(work, count, repeats, device):,.0f}", flush=True)

    pixels = DecodedPixels(manifest, image_px, "crop", "nvjpeg")
    show("reading, hashes and headers", lambda: [pixels.read(chunk.tolist()) for chunk in chunks])
    for readers in (2, 4):
        with ThreadPoolExecutor(readers) as pool:
            show(f"the same in {readers} threads", lambda: list(pool.map(pixels.read, map(np.ndarray.tolist, chunks))))
    read = [pixels.read(chunk.tolist()) for chunk in chunks]
    encoded = [[torch.frombuffer(content, dtype=torch.uint8) for content, _ in chunk] for chunk in read]
    turns = [[header.orientation for _, header in chunk] for chunk in read]
    decoded = [decode_jpeg(chunk, mode=ImageReadMode.RGB, device=device) for chunk in encoded]
    show("decoding", lambda: [decode_jpeg(chunk, mode=ImageReadMode.RGB, device=device) for chunk in encoded])
    both = list(zip(decoded, turns, strict=True))
    show("to squares", lambda: [to_squares(*one, image_px, "crop") for one in both])
    print(f"  {differing(*both[0], image_px):,} values differ from those of pictures resized one at a time")
    show("decoding, to squares", lambda: [decode_squares(chunk, image_px, "crop", False, device) for chunk in read])
    show("reading, decoding, to squares, one by one", lambda: [pixels.on_gpu(chunk.tolist()) for chunk in chunks])
    fetch, usual_workers = prefetching_fetcher(pixels, device)
    for workers in (1, 2, 3, 4):
        mark = " (as it is)" if workers == usual_workers else ""
        show(f"to the device, {workers} batches ahead{mark}", lambda: drain(prefetch(fetch, chunks, device, workers)))  # noqa: B023
    through = fetch_pixels(pixels, device)
    show("to the device through the CPU's memory, 2 ahead", lambda: drain(prefetch(through, chunks, device, 2)))
    show("to the CPU's memory, 2 ahead", lambda: drain(pixels.blocks(0)[0]))

    block = pixels[chunks[0]]
    folder = Path(os.environ["THAW_CACHE"])
    numbers = iter(range(10**6))

    def write() -> str:
        target = folder / f"written {next(numbers)}" / FILE
        rest = lambda done: (block[: len(chunk)] for chunk in chunks if chunk[0] >= done)  # noqa: E731
        return write_rows(target, pixels.shape, rest)

    show("writing and its journal", write)
    written = folder / "written 0" / FILE
    show("checksum of the store", lambda: file_checksum(written))
    began = time.perf_counter()
    open_pixels(manifest, image_px, "crop", decoder="nvjpeg")
    print(f"  into a store, all steps: {count / (time.perf_counter() - began):,.0f}", flush=True)


def differing(images: list[torch.Tensor], turns: list[int], image_px: int) -> int:
    """The number of values that differ when the images are resized together."""
    pairs = zip(images, turns, strict=True)
    alone = torch.cat([to_squares([image], [turn], image_px, "crop") for image, turn in pairs])
    return int((to_squares(images, turns, image_px, "crop") != alone).sum())


def drain(items: Iterator[object]) -> None:
    """Take all items."""
    for _ in items:
        pass


def rate(work: Callable[[], object], count: int, repeats: int, device: torch.device) -> float:
    """Images per second, the median of the repeats after one that is not counted."""
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates[1:])


if __name__ == "__main__":
    main()
