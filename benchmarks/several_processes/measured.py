"""What one process, or the leader of several, measures: all stages on a folder of pictures."""

import json
import os
import resource
import shutil
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.several_processes.times import Times, everywhere, parts_timed
from pipeline.cache.location import cache_folder
from pipeline.models.weights import PACKAGES
from pipeline.ranks.launch import call
from pipeline.ranks.team import deal
from pipeline.recipe.recipe_file import build_recipe
from pipeline.runs.recipe_pictures import gather_inputs
from pipeline.system.memory import keep_freed_memory
from stages import evaluate, fine_tune, precompute, train_head

PICTURES, FEW, FOUND = "pictures", "few", "found.json"
SECONDS_BETWEEN_LOOKS = 0.5
RECIPE: dict[str, Any] = {
    "data": {"test_fraction": 0.4},
    "train_head": {"lr": 1e-3, "stored_epochs": 2, "cycles": 0},
    "fine_tune": {"lr": 1e-4, "cycles": 1, "cycle_len": 1, "fraction": 0.1},
}  # fmt: skip
FROM_FILES, BY_STORE = "from files", "by a store"


def measure_in_processes(folder: Path, given: Namespace) -> None:
    """Have as many processes as are `given` do all stages on the folder's pictures; what they took is written there, as
    JSON: of each of the `stages` what `Times` has, and the most memory of each process."""
    keep_freed_memory()  # as commands do
    found = call(given.processes, _measured, folder, given)
    (folder / FOUND).write_text(json.dumps(found), encoding="utf-8")


def _measured(folder: Path, given: Namespace) -> dict[str, Any]:
    """What each stage took (see Times), and the most memory of each process."""
    if given.device == "cpu":
        everywhere(take_own_core)
    everywhere(start_looking)
    times = Times(processor_seconds if given.device == "cpu" else time.monotonic)
    with parts_timed(times):
        times.stage("all of it on a few pictures, the first time", partial(_do_stages, folder / FEW, given))
        _do_stages(folder / PICTURES, given, times.stage)
    return {"stages": times.stages, "memory": everywhere(peak_mib), "own memory": everywhere(own_peak_mib)}


def _do_stages(
    pictures: Path,
    given: Namespace,
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
