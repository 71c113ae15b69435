"""What several processes bring to stages that read pictures' files, on a processor core each.

    python -m benchmarks.several_processes [--pictures N] [--processes N] [--device cuda]

So many JPEGs of 640 × 480 are made (3,000 if no number is given), and then, by one process and by several (2), looked
at for the first time, precomputed, trained on for an epoch and evaluated, at 128 px by tf_efficientnet_lite0. Prints
for each the processor seconds of the process that leads, which on a core of its own are its time but for what it waits
for the others, and those of the busiest helper; and at the end the most memory that a process had: in all, and without
what it shares with others, such as the code of libraries. Takes some minutes.
On GPUs, one for each process, the processes share all cores, and seconds are those of a clock.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from pipeline.ranks.exchange import ask_all
from pipeline.ranks.launch import call
from pipeline.ranks.team import deal, processes, together
from pipeline.recipe.recipe_file import build_recipe
from pipeline.runs.recipe_pictures import gather_inputs
from pipeline.system.memory import keep_freed_memory
from stages import evaluate, fine_tune, precompute, train_head

CLASSES, SIZE_PX = 3, (640, 480)
SECONDS_BETWEEN_LOOKS = 0.5
RECIPE = {
    "data": {"test_fraction": 0.4}, "model": {"backbone": "tf_efficientnet_lite0"},
    "precompute": {"image_px": 128}, "resize": {"image_px": 128},
    "train_head": {"lr": 1e-3, "stored_epochs": 2, "cycles": 0},
    "fine_tune": {"lr": 1e-4, "cycles": 1, "cycle_len": 1, "fraction": 0.1},
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        keep_freed_memory()  # as commands do
        folder = Path(given.measure)
        found = call(given.processes, _measured, folder, given.device)
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        _make_pictures(Path(folder) / "pictures", given.pictures)
        alone, shared = (_in_processes(Path(folder), count, given.device) for count in (1, given.processes))
    unit = "seconds of a processor" if given.device == "cpu" else "seconds"
    print(f"{given.pictures:,} pictures, {given.processes} processes against one, {unit}")
    for what, (seconds, _) in alone["seconds"].items():
        leader, helper = shared["seconds"][what]
        words = f"{leader:.1f} by the leader and {helper:.1f} by a helper"
        print(f"  {what}: {seconds:.1f} by one, {words}: {seconds / max(leader, helper):.2f} x")
    for what in ("memory", "own memory"):
        peaks = " and ".join(f"{one:,}" for one in shared[what])
        print(f"  {what} at most, MiB: {alone[what][0]:,} by one, {peaks} by each")


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


def _in_processes(folder: Path, count: int, device: str) -> dict[str, Any]:
    own = {"THAW_CACHE": f"{folder}/cache {count}", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/{count}.db"}
    code = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **own, "PYTHONPATH": code} | ({"OMP_NUM_THREADS": "1"} if device == "cpu" else {})
    words = [sys.executable, "-m", "benchmarks.several_processes", "--measure", str(folder), "--processes", str(count)]
    words += ["--device", device]
    subprocess.run(words, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text("utf-8"))
    return found


def _measured(folder: Path, device: str) -> dict[str, Any]:
    """By stage the seconds of the leader and of the busiest helper; the most memory of each process."""
    if device == "cpu":
        everywhere(take_own_core)
    everywhere(start_looking)
    seconds = processor_seconds if device == "cpu" else time.monotonic
    found: dict[str, tuple[float, float]] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        before = everywhere(seconds)
        result = work()
        taken = [after - start for start, after in zip(before, everywhere(seconds), strict=True)]
        found[what] = taken[0], max(taken[1:], default=0.0)
        return result

    data = RECIPE["data"] | {"source": f"{folder}/pictures"}
    recipe = build_recipe(RECIPE | {"device": device, "data": data}, {}, "recipe.yaml")
    given = timed("first look at the pictures", lambda: gather_inputs(recipe))
    first = timed("precompute", lambda: precompute.run(recipe, given=given))
    head = train_head.run(recipe, first.run_id)
    tuned = timed("fine_tune", lambda: fine_tune.run(recipe, head.run_id))
    timed("evaluate", lambda: evaluate.run(recipe, tuned.run_id))
    return {"seconds": found, "memory": everywhere(peak_mib), "own memory": everywhere(own_peak_mib)}


def everywhere(ask: Callable[[], Any]) -> list[Any]:
    """What `ask` gives in each process, by number."""
    if processes() == 1:
        return [ask()]
    with together(answer, ask):
        return ask_all(ask())


def answer(ask: Callable[[], Any]) -> None:
    """A helper's part."""
    ask_all(ask())


def take_own_core() -> None:
    """Keep this process to a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[deal().number % len(cores)]})


def processor_seconds() -> float:
    """What this process has used."""
    return time.process_time()


def peak_mib() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class OwnMemory:
    """The most memory that this process has had for itself, which a thread looks at."""

    peak_bytes = 0

    def look(self) -> None:
        """Look again and again."""
        while True:
            self.peak_bytes = max(self.peak_bytes, psutil.Process().memory_full_info().uss)
            time.sleep(SECONDS_BETWEEN_LOOKS)


OWN = OwnMemory()


def start_looking() -> None:
    """Watch the memory that this process has for itself."""
    threading.Thread(target=OWN.look, daemon=True).start()


def own_peak_mib() -> int:
    """The most of it so far."""
    return OWN.peak_bytes // 2**20


if __name__ == "__main__":
    main()
