"""The line with which main begins: the network, the device, and each stage with the time that it will take."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from pipeline.data.manifest import Manifest
from pipeline.data.splits import SPLITS
from pipeline.ranks.team import processes
from pipeline.recipe.presets import advise_on_few
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan.probe import Probe
from pipeline.runs.plan.work import StageWork, work_of
from pipeline.runs.runner import before_first_work
from pipeline.system.console import held, roughly, say
from pipeline.system.device import choose_device
from pipeline.system.memory import return_freed_memory
from pipeline.tracking import RunRef

# Seconds that a stage takes whatever it has to do (figures, files, the tracking server, exports), as measured on two
# cores of an Intel Xeon, where evaluate took 12 to 17, and with an H200, where it took 22.
OVERHEAD_SECONDS = {
    "precompute": 3.3, "lr_find": 0.7, "train_head": 1.4, "lr_find_unfrozen": 0.7, "fine_tune": 2.8, "resize": 2.8,
    "evaluate": 16.0,
}  # fmt: skip
# The sizes of pictures are shown where a stage begins with another.
SIZED = ("precompute", "resize")


@contextmanager
def announced(recipe: Recipe, manifest: Manifest, done: Mapping[str, RunRef]) -> Iterator[dict[str, float]]:
    """Says, once within the block, what main will do: when the first stage works that is not reused, or at the end, and
    before all that was said since the beginning. `done` are the stages that have a run by then. A recipe that suits so
    few pictures better is named first.

    Gives the seconds that each further stage is expected to take, by its name, once they are known.
    """
    expected: dict[str, float] = {}
    if advice := advise_on_few(recipe, len(manifest.rows("train")), len(manifest.classes)):
        say(advice)
    works = work_of(recipe, {split: len(manifest.rows(split)) for split in SPLITS})
    with held() as release:

        def announce() -> None:
            open_stages = {name: work for name, work in works.items() if name not in done}
            expected.update(_try(recipe, manifest, open_stages))
            release(describe_plan(recipe, works, done, expected))

        with before_first_work(announce):
            yield expected
        release(describe_plan(recipe, works, done, expected))


def _try(recipe: Recipe, manifest: Manifest, works: Mapping[str, StageWork]) -> dict[str, float]:
    """How long stages with these `works` will take; empty if that cannot be tried. Random state and memory are as they
    were."""
    gpus = [torch.cuda.current_device()] if choose_device(recipe.device).type == "cuda" else []
    try:
        with torch.random.fork_rng(gpus):
            probe = Probe(recipe, manifest)
            return {name: seconds_of(name, work, probe) for name, work in works.items()}
    except Exception:  # no estimate is worth a run: whatever fails here fails in its stage, with its reason
        return {}
    finally:
        return_freed_memory()
        if gpus:  # how much is free decides how much stages take at a time
            torch.cuda.empty_cache()


def seconds_of(name: str, work: StageWork, probe: Probe) -> float:
    """How long the stage `name` will take, with this much to do at these speeds."""
    seconds = OVERHEAD_SECONDS[name.split()[0]] * probe.core
    if work.head_steps:
        seconds += work.head_steps * probe.head_step(work.head_batch_size)
    shared = 0.0  # by the processes that work together
    if work.opened:
        shared += work.opened * probe.opening(work.image_px)
    if work.passed:
        shared += work.passed * probe.passing(work.image_px, work.passed)
    for training in work.trainings:
        shared += training.steps * probe.step(training)
        shared += training.validated * probe.validating(training) if training.validated else 0.0
    return seconds + shared / processes()


def describe_plan(
    recipe: Recipe, works: Mapping[str, StageWork], done: Mapping[str, RunRef], expected: Mapping[str, float]
) -> str:
    """What main will do, in one line: the network, where it computes, how long it will take, and the stages."""
    parts = []
    further = [name for name in works if " seed " in name]
    for name, work in works.items():
        if further and name == "evaluate":
            seconds = [expected[one] for one in further if one in expected]
            time = roughly(sum(seconds)) if seconds else "reused" if all(one in done for one in further) else ""
            parts.append(f"{recipe.seeds - 1} more networks {time}".strip())
        if name in further:
            continue
        size = f" ({work.image_px} px)" if name.split()[0] in SIZED else ""
        time = f" {roughly(expected[name])}" if name in expected else " reused" if name in done else ""
        parts.append(f"{name}{size}{time}")
    total = f", about {roughly(sum(expected.values()))}" if expected else ""
    return f"{recipe.model.backbone} on {choose_device(recipe.device).type}{total}: {', '.join(parts)}"
