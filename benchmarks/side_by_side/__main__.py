"""Thaw beside fastai and beside the machine's limits, in one run.

    make bench                                                     # the quick form: some ten minutes on two quiet cores
    make bench FORM=full                                           # all pictures and iterations, three rounds: hours
    python -m benchmarks.side_by_side [--full] [--rounds N] [--parts PART ...] [--out FOLDER] [--name NAME]

Prints a table, and writes benchmarks/results/NAME.json after each figure. Both sides have the same pictures, weights,
sizes and epochs, and work in turns, each in a process of its own; on a machine with a GPU both use it, on all pictures.
Thaw's commands keep freed memory and have waiting threads give up the core; fastai's process gets the latter too,
without which it would look far worse on a machine where other work runs. fastai is in requirements-bench.txt.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.side_by_side.limits import (
    against_eager_steps,
    against_the_bare_limit,
    bookkeeping,
    by_set_size,
    finding_among_many_runs,
    of_the_engine,
    start_up,
)
from benchmarks.side_by_side.results import Comparison, Figure, machine_facts, tables, write_results
from benchmarks.side_by_side.sides import Side
from benchmarks.side_by_side.work import Work, validated

RESULTS = Path(__file__).resolve().parent.parent / "results"
ON_GPU = torch.cuda.is_available()
AGAINST_FASTAI = f"Against fastai 2.8, on {torch.cuda.get_device_name() if ON_GPU else 'a CPU'}"
FULL = [Work("tf_efficientnet_lite0"), Work("resnet18")]
QUICK = [
    replace(work, frozen=256, unfrozen=256, tta=128, iterations=20, recipe_pictures=1312, recipe_epochs=1)
    for work in FULL
]
# What is measured on both sides, by how many times Thaw should be faster on a CPU, and how many pictures either takes.
TASKS: Mapping[str, tuple[float, str, str]] = {
    "head epoch": (200, "stored", "frozen"),
    "head finder": (200, "", ""),
    "unfrozen epoch": (2.5, "unfrozen", "unfrozen"),
    "unfrozen finder": (2.5, "", ""),
    "TTA": (4, "tta", "tta"),
}
NAMES = {"head finder": "finder on the head", "unfrozen finder": "finder on all layers", "TTA": "evaluation with TTA"}
RECIPE_TARGET = 4
LIMITS = ("fine_tune", "precompute", "head", "late")
ENGINE = ("precompute", "evaluate", "early_frozen", "unfrozen", "export")
PARTS = ("fastai", "recipe", "limit", "engine", "costs", "sizes")
# On a GPU a first round, in which libraries start, is not counted, and medians cost little.
GPU_ROUNDS = 3


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all pictures and iterations, in three rounds")
    parser.add_argument("--rounds", type=int, default=0, help="how often each side does each task")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder that the file is written to")
    parser.add_argument("--name", default="", help="of the file, by default quick or full")
    given = parser.parse_args()
    works = FULL if given.full or ON_GPU else QUICK
    rounds = given.rounds or (GPU_ROUNDS if given.full or ON_GPU else 1)
    facts = machine_facts(" ".join(["python -m benchmarks.side_by_side", *sys.argv[1:]]))
    path = given.out / f"{given.name or ('full' if given.full else 'quick')}.json"
    comparisons: list[Comparison] = []
    figures: list[Figure] = []
    for found in _measured(given.parts, works, rounds, is_full=given.full):
        (figures if isinstance(found, Figure) else comparisons).append(found)
        write_results(path, comparisons, figures, facts)  # what is done is kept if the rest is interrupted
    print(f"\n{tables(comparisons, figures)}\n{path}")


def _measured(
    parts: Sequence[str], works: Sequence[Work], rounds: int, *, is_full: bool
) -> Iterator[Comparison | Figure]:
    if "fastai" in parts or "recipe" in parts:
        yield from _against_fastai(parts, works, rounds)
    if "limit" in parts:
        for part in LIMITS:
            yield from against_the_bare_limit(part, 5 if is_full or ON_GPU else 1)
        if ON_GPU:
            yield from against_eager_steps()
    if "engine" in parts and not ON_GPU:
        for part in ENGINE:
            yield from of_the_engine(part, 7 if is_full else 2)
    if "costs" in parts:
        yield finding_among_many_runs()
        yield from start_up()
        yield from bookkeeping(3 if is_full else 1)
    if "sizes" in parts:
        for count in [1_000, 10_000, 100_000] if is_full else [1_000, 4_000]:
            yield from by_set_size(count)


def _against_fastai(parts: Sequence[str], works: Sequence[Work], rounds: int) -> Iterator[Comparison | Figure]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "GOMP_SPINCOUNT": "0",
            "THAW_CACHE": f"{folder}/cache",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "MLFLOW_ARTIFACT_ROOT": folder,
        }
        with (
            Side("benchmarks.side_by_side.thaw_side", environment) as thaw,
            Side("benchmarks.side_by_side.fastai_side", environment) as fastai,
        ):
            for work in works:
                if "fastai" in parts:
                    yield _precompute(work, thaw)
                    yield from (compare(task, work, thaw, fastai, rounds) for task in TASKS)
                if "recipe" in parts and work is works[0]:
                    yield compare_recipes(work, thaw, fastai)


def compare(task: str, work: Work, thaw: Side, fastai: Side, rounds: int) -> Comparison:
    """Both sides in turns; epochs and TTA by the second of a thousand pictures."""
    target, *counts = TASKS[task]
    pairs = [(thaw.measure(task, work), fastai.measure(task, work)) for _ in range(rounds)]
    ours, theirs = (getattr(work, name) / 1000 if name else 1.0 for name in counts)
    scaled = [
        {key: (mine[key] / ours, other[key] / theirs) for key in ("wall", "cpu")} for mine, other in pairs
    ]  # fmt: skip
    ratios = {key: [one[key][1] / one[key][0] for one in scaled] for key in ("wall", "cpu")}
    found = Comparison(
        group=AGAINST_FASTAI,
        what=NAMES.get(task, task),
        of=name_of(work),
        ratio=statistics.median(ratios["wall"]),
        cpu_ratio=statistics.median(ratios["cpu"]),
        low=min(ratios["wall"]),
        high=max(ratios["wall"]),
        thaw=statistics.median(one["wall"][0] for one in scaled),
        other=statistics.median(one["wall"][1] for one in scaled),
        unit="s per 1,000 pictures" if counts[0] else f"s for {work.iterations} iterations",
        target=None if ON_GPU else target,
    )
    print(f"{found.what}, {found.of}: {found.ratio:.3g} times as fast, {found.cpu_ratio:.3g} in CPU time", flush=True)
    return found


def compare_recipes(work: Work, thaw: Side, fastai: Side) -> Comparison:
    """fastai's `fine_tune`, and Thaw's stages until they are as accurate on the same test pictures."""
    theirs = fastai.measure("recipe", work)
    ours = thaw.measure("recipe", work, accuracy=theirs["accuracy"])
    print(f"recipe: {ours}, fastai {theirs}", flush=True)
    return Comparison(
        group=AGAINST_FASTAI,
        what=f"recipe to the accuracy of fine_tune({work.recipe_epochs})",
        of=name_of(work),
        ratio=theirs["wall"] / ours["wall"],
        cpu_ratio=theirs["cpu"] / ours["cpu"],
        thaw=ours["wall"],
        other=theirs["wall"],
        unit="s",
        target=None if ON_GPU else RECIPE_TARGET,
        note=f"{work.recipe_pictures or 'all'} pictures; test accuracy {ours['accuracy']:.4f} and "
        f"{theirs['accuracy']:.4f}",
    )


def _precompute(work: Work, thaw: Side) -> Figure:
    seconds = thaw.measure("precompute", work)["wall"] / (work.stored + validated(work.stored)) * 1000
    return Figure(AGAINST_FASTAI, f"precompute, {name_of(work)}, which the head's figures leave out", seconds,
                  "s per 1,000 pictures")  # fmt: skip


def name_of(work: Work) -> str:
    """Its network and size."""
    names: Sequence[str] = {"tf_efficientnet_lite0": ["lite0"], "resnet18": ["ResNet-18"]}.get(work.backbone, [])
    return f"{(*names, work.backbone)[0]}, {work.image_px} px"


if __name__ == "__main__":
    main()
