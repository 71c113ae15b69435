"""Peak memory on the way from pictures to batches, by the number of pictures.

    python -m benchmarks.memory_by_set_size [COUNT ...]

For each count (10000 and 100000 if none is given) so many JPEGs of 32 px are made, and then, in a process of its own,
listed, inspected, split, decoded into a store and read once as shuffled, augmented batches; a second process does the
same with the results of the first in the cache, and a third without a store. Prints each one's peak resident memory and
seconds. Takes a few minutes on two cores, and 1.5 GiB of disk until it ends.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.data.augment import Augmentation
from pipeline.data.batches import Batches, fetch_pixels
from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import open_pixels

CLASSES, PICTURE_PX, BATCH_SIZE = 10, 32, 64
STARTS = {"first": 20.0, "second": 20.0, "without a store": 0.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "GIB"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        _measure(given.measure[0], float(given.measure[1]))
        return
    peaks: dict[str, list[int]] = {start: [] for start in STARTS}
    found: list[dict[str, float | str]] = []
    for count in given.counts:
        with tempfile.TemporaryDirectory() as folder:
            _make_pictures(Path(folder) / "pictures", count)
            for start, max_store_gib in STARTS.items():
                command = [sys.executable, "-m", "benchmarks.memory_by_set_size"]
                command += ["--measure", str(Path(folder) / "pictures"), str(max_store_gib)]
                environment = os.environ | {"THAW_CACHE": str(Path(folder) / "cache")}
                started = time.perf_counter()
                done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                peaks[start].append(int(done.stdout.split()[-1]))
                seconds = time.perf_counter() - started
                found.append({"start": start, "pictures": count, "mib": peaks[start][-1] / 2**20, "seconds": seconds})
                print(
                    f"{count:,} pictures, {start}: peak {peaks[start][-1] / 2**20:.0f} MiB, {seconds:.0f} s", flush=True
                )
    for start, of_start in peaks.items():
        print(f"{start}: the largest set takes {of_start[-1] / of_start[0]:.3f} of the memory of the smallest")
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")


def _make_pictures(root: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class {label}").mkdir(parents=True)
    for number in range(count):
        small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((PICTURE_PX, PICTURE_PX))
        picture.save(root / f"class {number % CLASSES}" / f"{number:06d}.jpg")


def _measure(source: str, max_store_gib: float) -> None:
    """Prints the peak memory of this process in bytes."""
    manifest = build_manifest(list_source(source, [".jpg"]), 0.15, 0.25, 0.01, seed=0)
    pixels = open_pixels(manifest, PICTURE_PX, "crop", max_store_gib)
    cpu, rows = torch.device("cpu"), np.arange(len(pixels))
    augmentation = Augmentation("sideways", 10, 1.1, 0.9, 0.2, 0.75)
    batches = Batches(fetch_pixels(pixels, cpu), rows, manifest.targets, BATCH_SIZE, cpu, 0, augmentation)
    for _ in batches.epoch(0):
        pass
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(facts["VmHWM"].split()[0]) * 1024)


if __name__ == "__main__":
    main()
