"""What a sweep costs: against as many separate runs of `main`, with and without pruning, and what of it is bookkeeping.

    python -m benchmarks.sweep                         # 20 trials over fine_tune's keys, on a part of the packaged set
    python -m benchmarks.sweep --parts bookkeeping     # four workers side by side

A separate run is `python -m stages main` with a trial's values and nothing reused. A few are run, with values of trials
that took the longest, the shortest and between, and stand for all. About half an hour on two quiet cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline.data.readers.sources import list_source
from pipeline.recipe.recipe_file import build_recipe
from pipeline.runs import runner
from pipeline.sweep import study_run, workers
from pipeline.sweep.workers import run_worker
from stages import sweep

SPACE = {
    "fine_tune.cycle_len": {"type": "int", "low": 1, "high": 2},
    "fine_tune.cycle_mult": {"type": "int", "low": 1, "high": 2},
    "fine_tune.lr": {"type": "log_uniform", "low": 1e-5, "high": 1e-2},
    "fine_tune.lr_ratio": {"type": "log_uniform", "low": 1.0, "high": 30.0},
    "fine_tune.weight_decay": {"type": "log_uniform", "low": 1e-4, "high": 0.3},
}
PROJECT = Path(__file__).resolve().parent.parent


def main(pictures: int, trials: int, mains: int, processes: int, parts: list[str]) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy_pictures(folder / "cells", pictures)
        if "time" in parts:
            _compare(folder, trials, mains)
        if "bookkeeping" in parts:
            _sweep(folder / "beside", folder / "cells", trials, "none", processes)
            shares = [json.loads(path.read_text()) for path in (folder / "beside").glob("share-*.json")]
            outside = 1 - sum(one["work"] for one in shares) / sum(one["trials"] for one in shares)
            print(f"bookkeeping with {processes} workers: {outside:.2%} of their trials' time")


def _compare(folder: Path, trials: int, mains: int) -> None:
    seconds, study = _sweep(folder / "whole", folder / "cells", trials, "none", 1)
    complete = sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=_seconds)
    chosen = [complete[round((index + 0.5) * len(complete) / mains - 0.5)] for index in range(mains)]
    separate = trials * mean(_separate(folder / "separate", folder / "cells", trial) for trial in chosen)
    pruned_seconds, pruned_study = _sweep(folder / "pruned", folder / "cells", trials, "hyperband", 1)
    pruned = pruned_study.get_trials(states=(TrialState.PRUNED,))
    print(f"{trials} separate runs: {separate:.0f} s (from {mains} of them)")
    print(f"a sweep of {trials} trials: {seconds:.0f} s, {seconds / separate:.2f} of that")
    print(f"with pruning: {pruned_seconds:.0f} s, {pruned_seconds / separate:.2f}; {len(pruned)} pruned")
    print(f"best valid accuracy: {study.best_value:.4f}, with pruning {pruned_study.best_value:.4f}")


def _sweep(folder: Path, pictures: Path, trials: int, pruner: str, processes: int) -> tuple[float, optuna.Study]:
    """(Seconds of all of a sweep's trials and of what they share, its study)."""
    folder.mkdir()
    url = f"sqlite:///{folder}/sweeps.db"
    settings = {
        "data.source": str(pictures), "sweep.storage": url, "sweep.trials": trials, "sweep.workers": processes,
        "sweep.pruner": pruner, "sweep.space": json.dumps(SPACE), "sweep.name": "measured",
    }  # fmt: skip
    began = time.perf_counter()
    _python(["-m", "benchmarks.sweep", "--measured", json.dumps(settings)], folder)
    return time.perf_counter() - began, optuna.load_study(study_name="measured", storage=url)


def _separate(folder: Path, pictures: Path, trial: FrozenTrial) -> float:
    """Seconds of a run of main with a trial's values, in a folder of its own, with nothing there before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    values = [word for key, value in trial.params.items() for word in (f"--{key}", str(value))]
    began = time.perf_counter()
    _python(["-m", "stages", "main", "--data", str(pictures), "--reuse", "never", *values], folder)
    return time.perf_counter() - began


def measured(settings: Mapping[str, object]) -> None:
    """All of a sweep but its end, with workers that record how much of their time was work."""
    workers.run_worker = timed_worker
    study_run.evaluate_best = lambda *arguments: None
    sweep.run(build_recipe({}, {key: str(value) for key, value in settings.items()}, "the benchmark"))


def timed_worker(index: int, *arguments: object) -> bool:
    """A worker that leaves a file with the seconds of its trials, and of the stages' work within them."""
    spent = {"work": 0.0, "trials": 0.0}

    def timed(name: str, function):  # type: ignore[no-untyped-def]
        def run(*arguments, **more):  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                spent[name] += time.perf_counter() - began

        return run

    run = runner._run
    runner._run = lambda stage, up, fingerprint, job, work: run(stage, up, fingerprint, job, timed("work", work))
    workers.run_trial = timed("trials", workers.run_trial)
    done = run_worker(index, *arguments)  # type: ignore[arg-type]
    Path(f"share-{index}.json").write_text(json.dumps(spent))
    return done


def _seconds(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["seconds"])


def _python(arguments: list[str], folder: Path) -> None:
    variables = {"THAW_CACHE": f"{folder}/cache", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    environment = os.environ | variables | {"PYTHONPATH": str(PROJECT), "GOMP_SPINCOUNT": "0"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def _copy_pictures(folder: Path, pictures: int) -> None:
    listing = list_source("elpv", [])
    step = len(listing.paths) // pictures
    for path, label in list(zip(listing.paths, listing.labels, strict=True))[:: max(step, 1)]:
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(listing.root / path, folder / label)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=250)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--mains", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--parts", nargs="+", default=["time", "bookkeeping"], choices=["time", "bookkeeping"])
    parser.add_argument("--measured", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measured:
        measured(json.loads(given.measured))
    else:
        main(given.pictures, given.trials, given.mains, given.workers, given.parts)
