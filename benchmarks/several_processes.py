"""What several processes bring to stages that read pictures' files, and where their time goes.

    python -m benchmarks.several_processes [--pictures N] [--processes N] [--device cuda] [--image-px N]

So many JPEGs of 640 × 480 are made (3,000 if no number is given). Then, by one process and by several (2), they are
looked at for the first time, precomputed and evaluated, decoded from their files at each reading; and once more with a
store of their pixels, on which a network is trained for an epoch, too, unless that is left out (--without-store).
Before that all is done on 300 pictures, which pays what the first of everything costs: loading libraries, starting GPUs
and what is sent between them.

Each stage is printed as soon as it is done, with the parts that the leader spends its time in, and what its threads do
meanwhile, in seconds of a clock. On CPUs each process has a core of its own, and other seconds are those of a
processor, without what it waits for the others. On GPUs, one for each process, they share all cores, and seconds are
those of a clock. At the end there is the most memory that a process had: in all, and without what it shares with
others, such as the code of libraries. Takes some minutes.
"""

import argparse
import json
import os
import pkgutil
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from PIL import Image

from pipeline.cache.location import cache_folder
from pipeline.models.weights import PACKAGES
from pipeline.ranks.exchange import ask_all
from pipeline.ranks.launch import call
from pipeline.ranks.team import deal, processes, together
from pipeline.recipe.recipe_file import build_recipe
from pipeline.runs.recipe_pictures import gather_inputs
from pipeline.system.memory import keep_freed_memory
from stages import evaluate, fine_tune, precompute, train_head

CLASSES, SIZE_PX = 3, (640, 480)
FEW, FEW_PICTURES = "few", 300
SECONDS_BETWEEN_LOOKS = 0.5
SHORTEST_SECONDS = 0.01
RECIPE: dict[str, Any] = {
    "data": {"test_fraction": 0.4},
    "train_head": {"lr": 1e-3, "stored_epochs": 2, "cycles": 0},
    "fine_tune": {"lr": 1e-4, "cycles": 1, "cycle_len": 1, "fraction": 0.1},
}  # fmt: skip
FROM_FILES, BY_STORE = "from files", "by a store"
# The parts of a stage, by the functions of the leader that spend its time.
PARTS = {
    "stages.work.precompute.open_run_pixels": "pixels",
    "stages.work.precompute.write_manifest_figures": "figures",
    "stages.work.precompute.open_activations": "activations",
    "stages.work.evaluate.open_networks": "pixels",
    "stages.work.evaluate.cross_validate": "cross-validation",
    "pipeline.evaluation.evaluation.predict_members": "predictions",
    "pipeline.evaluation.evaluation.near_duplicates": "near-duplicates",
    "stages.work.evaluate.write_evaluation": "report",
    "stages.work.evaluate.save_neighbours": "neighbours",
    "stages.work.evaluate.publish": "served model",
}
# Those that all processes do together.
SHARED = ("pixels", "activations", "predictions")
# What is done within the parts, by any thread of the leader.
WITHIN = {
    "pipeline.data.decoded_pixels.DecodedPixels.read": "reading files for a GPU",
    "pipeline.data.decoded_pixels.decode_squares": "decoding on a GPU",
    "pipeline.cache.row_file._write_after": "writing pixels",
    "os.fsync": "waiting for the disk",
    "pipeline.models.engine.spread.Spread.provide": "giving helpers the network",
    "pipeline.ranks.exchange.receive_array": "waiting for helpers",
    "pipeline.data.joint.decoding.receive_array": "waiting for helpers",
    "pipeline.tracking.artifacts.enqueue": "logging",
    "pipeline.tracking.artifacts.flush": "logging",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=3_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--without-store", action="store_true")
    parser.add_argument(
        "--backbone", default="tf_efficientnet_lite0", help="its weights are random, but for this one's"
    )
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        keep_freed_memory()  # as commands do
        folder = Path(given.measure)
        found = call(given.processes, _measured, folder, given)
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, started = Path(temporary), time.monotonic()
        _make_pictures(folder / "pictures", given.pictures)
        _make_pictures(folder / FEW, FEW_PICTURES)
        print(f"{given.pictures:,} pictures are made in {time.monotonic() - started:.0f} s", flush=True)
        alone, shared = (_in_processes(folder, count, given) for count in (1, given.processes))
    unit = "seconds of a processor" if given.device == "cpu" else "seconds"
    print(f"{given.pictures:,} pictures, {given.processes} processes against one, {unit}")
    for what, one in alone["stages"].items():
        several = shared["stages"][what]
        print(f"  {what}: {one['leader']:.1f} by one, {_compared(one['leader'], several)}")
        for name in SHARED:
            if seconds := one["parts"].get(name):
                print(f"    {name}: {seconds:.1f} by one, {_compared(seconds, {'leader': several['parts'][name]})}")
    for what in ("memory", "own memory"):
        peaks = " and ".join(f"{one:,}" for one in shared[what])
        print(f"  {what} at most, MiB: {alone[what][0]:,} by one, {peaks} by each")


def _compared(alone: float, several: dict[str, Any]) -> str:
    """Such as "3.1 by the leader and 2.9 by a helper: 1.61 x"."""
    helper = several.get("helper")
    words = f"{several['leader']:.1f} by the leader" + (f" and {helper:.1f} by a helper" if helper else "")
    return f"{words}: {alone / max(several['leader'], helper or 0):.2f} x"


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


def _in_processes(folder: Path, count: int, given: argparse.Namespace) -> dict[str, Any]:
    own = {"THAW_CACHE": f"{folder}/cache {count}", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/{count}.db"}
    code = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **own, "PYTHONPATH": code} | (
        {"OMP_NUM_THREADS": "1"} if given.device == "cpu" else {}
    )
    words = [sys.executable, "-m", "benchmarks.several_processes", "--measure", str(folder), "--processes", str(count)]
    words += ["--device", given.device, "--image-px", str(given.image_px), "--backbone", given.backbone]
    words += ["--without-store"] * given.without_store
    print(f"{count} process{'es' if count > 1 else ''}", flush=True)
    started = time.monotonic()
    subprocess.run(words, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    print(f"  in all {time.monotonic() - started:.1f} s by the clock", flush=True)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text("utf-8"))
    return found


class Times:
    """What each stage took, by its name: the seconds of the `leader`, of the busiest `helper`, and of the leader's
    `parts`."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.stages: dict[str, dict[str, Any]] = {}
        self._seconds = seconds
        self._parts, self._within = defaultdict[str, float](float), defaultdict[str, float](float)

    def stage(self, what: str, work: Callable[[], Any]) -> Any:
        """What the work gives; what it took is printed."""
        self._parts.clear()
        self._within.clear()
        before, started = everywhere(self._seconds), time.monotonic()
        result = work()
        clock = time.monotonic() - started
        leader, *helpers = (end - start for start, end in zip(before, everywhere(self._seconds), strict=True))
        parts = dict(self._parts)
        self.stages[what] = {"leader": leader, "helper": max(helpers, default=None), "parts": parts}
        told = [f"{name} {seconds:.2f}" for name, seconds in [*parts.items(), ("else", leader - sum(parts.values()))]]
        within = [f"{name} {seconds:.2f}" for name, seconds in self._within.items() if seconds >= SHORTEST_SECONDS]
        print(f"  {what}: {leader:.2f} s ({clock:.2f} by the clock): {', '.join(told)}", file=sys.stderr)
        print(f"    meanwhile {', '.join(within) or 'nothing else'}", file=sys.stderr, flush=True)
        return result

    def part(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as this part."""
        return self._timed(self._parts, name, function, self._seconds)

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as something within the parts."""
        return self._timed(self._within, name, function, time.monotonic)

    @staticmethod
    def _timed(
        taken: dict[str, float], name: str, function: Callable[..., Any], seconds: Callable[[], float]
    ) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = seconds()
            try:
                return function(*arguments, **options)
            finally:
                taken[name] += seconds() - started

        return timed


@contextmanager
def parts_timed(times: Times) -> Iterator[None]:
    """Within the block PARTS and WITHIN are timed."""
    with ExitStack() as stack:
        for functions, timed in ((PARTS, times.part), (WITHIN, times.within)):
            for function, name in functions.items():
                owner_name, _, attribute = function.rpartition(".")
                owner = pkgutil.resolve_name(owner_name)
                stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def _measured(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """What each stage took (see Times), and the most memory of each process."""
    if given.device == "cpu":
        everywhere(take_own_core)
    everywhere(start_looking)
    times = Times(processor_seconds if given.device == "cpu" else time.monotonic)
    with parts_timed(times):
        times.stage(f"all of it on {FEW_PICTURES} pictures, the first time", partial(_measure, folder / FEW, given))
        _measure(folder / "pictures", given, times.stage)
    return {"stages": times.stages, "memory": everywhere(peak_mib), "own memory": everywhere(own_peak_mib)}


def _measure(
    pictures: Path,
    given: argparse.Namespace,
    timed: Callable[[str, Callable[[], Any]], Any] = lambda _, work: work(),
) -> None:
    """All stages, each of them `timed`."""
    own = RECIPE | {"device": given.device, "data": RECIPE["data"] | {"source": str(pictures)}}
    own |= {name: {"image_px": given.image_px} for name in ("precompute", "resize")}
    own["model"] = {"backbone": given.backbone, "weights": "auto" if given.backbone in PACKAGES else "random"}
    recipe = build_recipe(own, {"data.max_store_gib": "0"}, "recipe.yaml")
    inputs = timed("first look at the pictures", lambda: gather_inputs(recipe))
    first = timed(f"precompute, {FROM_FILES}", lambda: precompute.run(recipe, given=inputs))
    head = train_head.run(recipe, first.run_id)
    timed(f"evaluate, {FROM_FILES}", lambda: evaluate.run(recipe, head.run_id))
    if given.without_store:
        return
    shutil.rmtree(cache_folder() / "activations")  # else they are not computed again
    recipe = build_recipe(own, {"reuse": "never"}, "recipe.yaml")
    first = timed(f"precompute, {BY_STORE}", lambda: precompute.run(recipe, given=inputs))
    head = train_head.run(recipe, first.run_id)
    tuned = timed(f"fine_tune, {BY_STORE}", lambda: fine_tune.run(recipe, head.run_id))
    timed(f"evaluate, {BY_STORE}", lambda: evaluate.run(recipe, tuned.run_id))


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
