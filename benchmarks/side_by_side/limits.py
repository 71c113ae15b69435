"""Thaw against the machine's limits, by the other benchmarks, and what starting, logging and finding cost."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.results import Comparison, Figure
from benchmarks.side_by_side.work import pictures
from pipeline.runs.fingerprint import PROJECT

ENGINE = "ONNX Runtime and kept memory on a CPU, against PyTorch alone, in CPU seconds"
COSTS, SIZES = "What starting, logging and finding cost", "Cost by the number of pictures"
RUNS = 10_000


def against_the_bare_limit(part: str, repeats: int) -> list[Comparison]:
    """The ratios of a part of `benchmarks.throughput`."""
    found = _benchmark("throughput", "--parts", part, "--repeats", str(repeats))
    return [Comparison(**one) for one in found]


def against_eager_steps() -> list[Comparison]:
    """The ratios of `benchmarks.captured_steps`."""
    return [Comparison(**one) for one in _benchmark("captured_steps")]


def of_the_engine(part: str, repeats: int) -> list[Figure]:
    """The figures of a part of `benchmarks.inference`."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.inference", "--parts", part]
    command += ["--repeats", str(repeats)]
    done = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
    lines = re.findall(r"^(.+): ([\d.]+)$", done.stdout, re.MULTILINE)
    return [Figure(ENGINE, name, float(value), "") for name, value in lines]


def by_set_size(count: int) -> list[Figure]:
    """The figures of `benchmarks.memory_by_set_size` for so many pictures."""
    figures = []
    for one in _benchmark("memory_by_set_size", str(count)):
        what = f"{one['pictures']:,} pictures of 32 px, {one['start']}"
        figures.append(Figure(SIZES, f"{what}: peak memory", one["mib"], "MiB"))
        figures.append(Figure(SIZES, f"{what}: time", one["seconds"], "s"))
    return figures


def bookkeeping(epochs: int) -> list[Figure]:
    """The shares of `benchmarks.bookkeeping`, in percent."""
    shares: dict[str, float] = _benchmark("bookkeeping", "--epochs", str(epochs))
    limits = {"logging": 1.0}
    return [
        Figure(COSTS, f"{name}, of a fine-tuning epoch", 100 * share, "%", limits.get(name))
        for name, share in shares.items()
    ]


def finding_among_many_runs() -> Figure:
    """The time to find a finished stage."""
    command = [sys.executable, "-m", "benchmarks.side_by_side.finished_runs"]
    done = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True)
    seconds = float(done.stdout.split()[-2])
    return Figure(COSTS, f"to find a finished stage among {RUNS:,} runs", seconds, "s", 0.2)


def start_up() -> list[Figure]:
    """The time of `--help`, of a mistake, and of a `main` whose stages are all finished."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, label in pictures(128).items():
            (folder / "cells" / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / "cells" / label)
        main = ["main", "--recipe", "recipes/smoke.yaml", "--data", str(folder / "cells")]
        environment = os.environ | {
            "THAW_CACHE": f"{name}/cache",
            "MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db",
            "MLFLOW_ARTIFACT_ROOT": name,
        }

        def timed(*arguments: str, expected: int = 0) -> float:
            began = time.perf_counter()
            command = [sys.executable, "-m", "stages", *arguments]
            done = subprocess.run(command, cwd=PROJECT, env=environment, check=False, capture_output=True, text=True)
            if done.returncode != expected:
                raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
            return time.perf_counter() - began

        first, wrong = timed(*main), [*main, "--fine_tune.lr", "fast"]
        return [
            Figure(COSTS, "python -m stages --help", timed("--help"), "s", 1.0),
            Figure(COSTS, "a mistake in the recipe is reported", timed(*wrong, expected=2), "s", 1.0),
            Figure(COSTS, "main by recipes/smoke.yaml, 128 pictures", first, "s"),
            Figure(COSTS, "the same again, when all its stages are finished", timed(*main), "s", 5.0),
        ]


def _benchmark(name: str, *arguments: str) -> Any:
    """What another benchmark writes as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", *arguments, "--json", str(path)]
        subprocess.run(command, cwd=PROJECT, check=True)
        return json.loads(path.read_text(encoding="utf-8"))
