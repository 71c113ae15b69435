"""What several processes bring to stages that read pictures' files, and where their time goes.

    python -m benchmarks.several_processes [--pictures N] [--processes N] [--device cuda] [--image-px N] [--rounds N]

So many JPEGs of 640 × 480 are made (3,000 if no number is given). Then, by one process and by several (2), they are
looked at for the first time, precomputed and evaluated, decoded from their files at each reading; and once more with a
store of their pixels, on which a network is trained for an epoch, too, unless that is left out (--without-store).
Before that all is done on 300 pictures, which pays what the first of everything costs: loading libraries, starting GPUs
and what is sent between them.

Each stage is printed as soon as it is done, with the parts that the leader spends its time in, and what its threads do
meanwhile, in seconds of a clock. On CPUs each process has a core of its own, and other seconds are those of a
processor, without what it waits for the others. On GPUs, one for each process, they share all cores, and seconds are
those of a clock. At the end there are the medians of all rounds, in which one process and several take turns, and the
most memory that a process had: in all, and without what it shares with others, such as the code of libraries. Takes
some minutes a round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from benchmarks.several_processes.measured import FEW, FOUND, PICTURES, measure_in_processes
from benchmarks.several_processes.times import SHARED

CLASSES, SIZE_PX = 3, (640, 480)
FEW_PICTURES = 300
Found: TypeAlias = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--without-store", action="store_true")
    parser.add_argument(
        "--backbone", default="tf_efficientnet_lite0", help="its weights are random, but for this one's"
    )
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure_in_processes(Path(given.measure), given)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, started = Path(temporary), time.monotonic()
        _make_pictures(folder / PICTURES, given.pictures)
        _make_pictures(folder / FEW, FEW_PICTURES)
        print(f"{given.pictures:,} pictures are made in {time.monotonic() - started:.0f} s", flush=True)
        rounds = [
            (_in_processes(folder, 1, number, given), _in_processes(folder, given.processes, number, given))
            for number in range(given.rounds)
        ]
    unit = "seconds of a processor" if given.device == "cpu" else "seconds"
    print(f"{given.pictures:,} pictures, {given.processes} processes against one, {unit}, of {given.rounds} rounds")
    for line in compare(rounds):
        print(line)


def compare(rounds: Sequence[tuple[Found, Found]]) -> Iterator[str]:
    """A line for each stage and shared part, such as "precompute: 3.1 by one, 1.9 by the busiest of several: 1.61 x
    (1.55 to 1.70)"; and for the memory of each process. Seconds are medians over the rounds, of which each has what
    one process and what several found; beside their ratio are the lowest and the highest of a round."""
    alone, several = ([pair[which] for pair in rounds] for which in (0, 1))
    for what in alone[0]["stages"]:
        yield f"  {what}: {_compared(*([_busiest(one['stages'][what]) for one in of] for of in (alone, several)))}"
        for name in SHARED:
            seconds = [[one["stages"][what]["parts"].get(name, 0.0) for one in of] for of in (alone, several)]
            if min(map(min, seconds)) > 0:
                yield f"    {name}: {_compared(*seconds)}"
    for what in ("memory", "own memory"):
        peaks = " and ".join(f"{max(of):,}" for of in zip(*(one[what] for one in several), strict=True))
        yield f"  {what} at most, MiB: {max(one[what][0] for one in alone):,} by one, {peaks} by each"


def _busiest(stage: dict[str, Any]) -> float:
    """The seconds of the process that took longest."""
    return max(stage["leader"], stage["helper"] or 0.0)


def _compared(alone: Sequence[float], several: Sequence[float]) -> str:
    """Such as "3.1 by one, 1.9 by the busiest of several: 1.61 x (1.55 to 1.70)"."""
    ratios = [one / other for one, other in zip(alone, several, strict=True)]
    words = f"{median(alone):.1f} by one, {median(several):.1f} by the busiest of several"
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{words}: {median(ratios):.2f} x{spread}"


def _make_pictures(root: Path, count: int) -> None:
    """Smooth pictures with the noise of a camera."""
    for number in range(CLASSES):
        (root / f"class {number}").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_make_picture, root), range(count), chunksize=100))


def _make_picture(root: Path, number: int) -> None:
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(SIZE_PX)
    noise = random.integers(-12, 13, (SIZE_PX[1], SIZE_PX[0], 1), dtype=np.int16)
    noisy = np.clip(np.asarray(small, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(root / f"class {number % CLASSES}" / f"{number}.jpg", quality=88)


def _in_processes(folder: Path, count: int, number: int, given: argparse.Namespace) -> Found:
    """What so many processes found, in the round of this number."""
    place = f"{folder}/{number}, {count} processes"
    own = {"THAW_CACHE": f"{place}/cache", "MLFLOW_TRACKING_URI": f"sqlite:///{place}/runs.db"}
    Path(place).mkdir()
    code = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **own, "PYTHONPATH": code} | (
        {"OMP_NUM_THREADS": "1"} if given.device == "cpu" else {}
    )
    words = [sys.executable, "-m", "benchmarks.several_processes", "--measure", str(folder), "--processes", str(count)]
    words += ["--device", given.device, "--image-px", str(given.image_px), "--backbone", given.backbone]
    words += ["--without-store"] * given.without_store
    print(f"round {number + 1}, {count} process{'es' if count > 1 else ''}", flush=True)
    started = time.monotonic()
    subprocess.run(words, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    print(f"  in all {time.monotonic() - started:.1f} s by the clock", flush=True)
    found: Found = json.loads((folder / FOUND).read_text("utf-8"))
    return found


if __name__ == "__main__":
    main()
