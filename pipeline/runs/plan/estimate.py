"""How long stages will take: what each has to do, at the speeds that a probe measures."""

from collections.abc import Mapping

import torch

from pipeline.data.manifest import Manifest
from pipeline.ranks.team import processes
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan.probe import Probe
from pipeline.runs.plan.work import StageWork
from pipeline.system.device import choose_device, training_precision
from pipeline.system.memory import return_freed_memory

# Seconds that a stage takes whatever it has to do (figures, files, the tracking server, exports), as measured on two
# cores of an Intel Xeon; evaluate with an H200, where it took 9.6 s, nearly nothing of it for its 398 pictures.
OVERHEAD_SECONDS = {
    "precompute": 3.3, "lr_find": 0.7, "train_head": 1.4, "lr_find_unfrozen": 0.7, "fine_tune": 2.8, "resize": 2.8,
    "evaluate": 10.0,
}  # fmt: skip


def expected_seconds(recipe: Recipe, manifest: Manifest, works: Mapping[str, StageWork]) -> dict[str, float]:
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


def computed_by(recipe: Recipe) -> str:
    """The device, and what networks are trained in there if that is not float32: "cpu (trained in bfloat16)"."""
    device = choose_device(recipe.device)
    precision = training_precision(recipe.training.precision, device)
    return device.type if precision == "float32" else f"{device.type} (trained in {precision})"


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
