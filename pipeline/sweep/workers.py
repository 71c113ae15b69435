"""The worker processes that run the trials of a study, and what each of them does."""

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
import torch
from optuna.trial import Trial

from pipeline.cache.store import cache_folder
from pipeline.recipe.schema import Recipe
from pipeline.sweep.space import most_epochs
from pipeline.sweep.study import build_pruner, build_sampler, open_storage, sampler_seed, space_of, suggest
from pipeline.sweep.trial_queue import (
    REASON,
    is_all_done,
    is_more_to_do,
    queue_stale,
    run_trials,
    started,
    take_one_at_a_time,
)
from pipeline.sweep.trial_run import Train, run_trial
from pipeline.system.console import warn
from pipeline.system.errors import UserError
from pipeline.system.processes import defer_signals, end_with_parent, raise_on_signals

POLL_SECONDS = 1.0
SECONDS_TO_STOP = 60.0
# A worker that is killed now and then is replaced; so many that crash one after the other end the sweep.
MOST_CRASHES = 4
HAS_GIVEN_UP = 3  # the exit code of a worker whose last trials all failed


class Workers:
    """Up to `count` processes that run `target(index, *arguments)`, the index counted from 0; what they print goes to
    files in `folder`.

    `target` returns False to give up, since all that it tried failed.
    """

    def __init__(self, count: int, target: Callable[..., bool], arguments: Sequence[Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._target = target
        self._arguments = tuple(arguments)
        self._folder = folder
        self._processes: list[BaseProcess | None] = [None] * count
        self._crashes = 0

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop them all, with time for each to save its trial."""
        alive = [process for process in self._processes if process is not None and process.is_alive()]
        for process in alive:
            process.terminate()
        until = time.monotonic() + SECONDS_TO_STOP
        for process in alive:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()

    def start_missing(self) -> None:
        """Start a process for each index that has none."""
        for index, process in enumerate(self._processes):
            if process is None:
                self._processes[index] = self._start(index)

    def clear_ended(self) -> bool:
        """Forget the processes that have ended; False if one gave up. UserError if they crash one after the other."""
        goes_on = True
        for index, process in enumerate(self._processes):
            if process is not None and process.exitcode is not None:
                self._processes[index] = None
                goes_on = goes_on and process.exitcode != HAS_GIVEN_UP
                self._crashes = self._crashes + 1 if process.exitcode not in (0, HAS_GIVEN_UP) else 0
                if self._crashes >= MOST_CRASHES:
                    raise UserError(f"The last {self._crashes} workers crashed; {self.log(index)} says why.")
        return goes_on

    def log(self, index: int) -> Path:
        """The file with what the worker of this index prints."""
        return self._folder / f"worker-{index + 1}.log"

    def _start(self, index: int) -> BaseProcess:
        # A fresh interpreter: a forked one could use neither a GPU nor the threads of its parent's libraries.
        process = multiprocessing.get_context("spawn").Process(
            target=_run_process,
            args=(self.log(index), self._target, (index, *self._arguments), os.getpid()),
            name=f"worker {index + 1}",
        )
        # The child loads torch before its first statement here, to unpickle what it is to do.
        with _environment(environment_of(index, len(self._processes))):
            process.start()
        return process


def run_all(
    recipe: Recipe, study: optuna.Study, url: str, run_id: str, train: Train, report: Callable[[], None]
) -> None:
    """Have workers run trials, until none is left to start and none is running on any machine.

    `report` is called now and then. UserError if trial after trial fails. If this is interrupted, workers save their
    trials, and the next command on the study resumes them.
    """
    arguments = (recipe, url, study.study_name, run_id, train)
    with Workers(recipe.sweep.workers, run_worker, arguments, _log_folder(study.study_name)) as workers:
        while not tend_workers(study, recipe.sweep.trials, workers, report):
            time.sleep(POLL_SECONDS)
    report()


def tend_workers(study: optuna.Study, trials: int, workers: Workers, report: Callable[[], None]) -> bool:
    """Replace workers that have ended, if there is more to do; whether all trials are done."""
    # A query that Ctrl-C cuts short keeps an SQLite file locked, and workers could write nothing into it.
    with defer_signals():
        queue_stale(study, _lock(study.study_name))
        if is_all_done(study, trials):
            return True
        if not workers.clear_ended():
            raise UserError(f"One trial after the other failed ({_last_reason(study)}); fix that, and run it again.")
        if is_more_to_do(study, trials):
            workers.start_missing()
        report()
    return False


def run_worker(index: int, recipe: Recipe, url: str, study_name: str, run_id: str, train: Train) -> bool:
    """Run trials of a study until none is left to do; False if the last few all failed."""
    sweep = recipe.sweep
    storage = open_storage(url, sweep.heartbeat_seconds, make_tables=False)
    study = optuna.load_study(study_name=study_name, storage=storage)
    take_one_at_a_time(study, _lock(study_name))
    space = space_of(study)
    study.sampler = build_sampler(sweep.sampler, sampler_seed(recipe.seed, started(study), index))
    study.pruner = build_pruner(sweep.pruner, most_epochs(recipe, space))

    def objective(trial: Trial) -> list[float]:
        return run_trial(trial, suggest(trial, space), recipe, sweep.objectives, run_id, train)

    return run_trials(study, sweep.trials, objective)


def environment_of(index: int, count: int) -> dict[str, str]:
    """What a worker's libraries read when they are loaded: its GPU, if there is one, and its share of the cores."""
    threads = max(1, len(os.sched_getaffinity(0)) // count) if sys.platform == "linux" else 1
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
    gpus = gpus or [str(number) for number in range(torch.cuda.device_count())]
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return environment


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block; a process that starts in it inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_process(log: Path, target: Callable[..., bool], arguments: Sequence[Any], parent: int) -> None:
    """The main function of a worker process."""
    with log.open("a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    raise_on_signals()
    end_with_parent()
    if os.getppid() != parent:  # the parent ended before it could be watched
        sys.exit(1)
    try:
        sys.exit(0 if target(*arguments) else HAS_GIVEN_UP)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        warn(str(error))
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _log_folder(study_name: str) -> Path:
    """The folder for what the workers of this machine print."""
    return cache_folder() / "sweeps" / study_name


def _lock(study_name: str) -> Path:
    return _log_folder(study_name) / "queue.lock"


def _last_reason(study: optuna.Study) -> str:
    reasons = [trial.user_attrs[REASON] for trial in study.get_trials(deepcopy=False) if REASON in trial.user_attrs]
    return str(reasons[-1]) if reasons else "no reason is known"
