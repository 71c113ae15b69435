"""Every key of a sweep's sections arrives: which trials and heads there are, how they are chosen, and where kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pandas as pd
import pytest
from optuna.pruners import MedianPruner
from optuna.samplers import GPSampler
from optuna.study import StudyDirection

from pipeline import tracking
from pipeline.recipe.schema import Recipe, flatten
from pipeline.sweep import best, study_run, workers
from pipeline.sweep.trials import values_of
from pipeline.tracking import RunRef
from stages import precompute, sweep, sweep_head
from stages.work import sweep_head as sweep_head_work
from tests.drawn_pictures import draw_pictures
from tests.stages.chains import recipe_on

VALUES = {"trials": 4, "workers": 3, "gpus_per_trial": 2, "name": "mine", "objective": ["valid/loss", "valid/macro_f1"],
          "sampler": "gp", "pruner": "median", "seeds": 2, "heartbeat_seconds": 7}  # fmt: skip
SPACE = {"fine_tune.weight_decay": {"type": "uniform", "low": 0.05, "high": 0.25},
         "head.dropout": {"type": "uniform", "low": 0.2, "high": 0.4}}  # fmt: skip
# Ranges apart from each other, from the defaults and from the chain's own settings.
HEADS = {"settings": 5, "seeds": 3, "finder_seeds": 6,
         "lr": {"type": "log_uniform", "low": 0.1, "high": 0.2},
         "weight_decay": {"type": "uniform", "low": 1.0, "high": 2.0},
         "dropout": {"type": "choice", "of": [0.11, 0.12]},
         "label_smoothing": {"type": "choice", "of": [0.21, 0.22]},
         "stored_epochs": {"type": "int", "low": 11, "high": 12}}  # fmt: skip


class Bench:
    """Stands for the stages of a trial and for worker processes, and notes what is asked of them; `folder` is where the
    sweep ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds: list[int] = []
        self.evaluated: list[str] = []
        self.workers: list[int] = []
        self.studies: list[optuna.Study] = []
        self.lapses: list[float] = []
        self.gpus_each: list[int] = []
        self.called: list[tuple[int, str]] = []

    def call(self, processes: int, function: Callable[..., Any], *arguments: Any) -> Any:
        self.called.append((processes, function.__name__))
        return function(*arguments)

    def train(self, recipe: Recipe, *after_epoch: Any, find_given: bool = True) -> Any:
        self.seeds.append(recipe.seed)
        with tracking.open_run("stage", {}, {}) as run_id:
            pass
        metrics = {
            "kept_valid_accuracy": 0.8,
            "kept_valid_macro_f1": 0.7,
            "kept_valid_loss": 0.5,
            "suggestion/lr": 1e-3,
        }
        for name in ("lr_find", "lr_find_unfrozen", "train_head", "fine_tune", "resize"):
            yield name, RunRef(run_id, name, "", None, metrics)

    def evaluate(self, recipe: Recipe, upstream: str) -> RunRef:
        self.evaluated.append(upstream)
        with tracking.open_run("evaluate", {}, {}) as run_id:
            tracking.log_text(run_id, "how good", "report.html")
        return RunRef(run_id, "evaluate", "", None, {"test/accuracy": 0.79})

    def __call__(
        self, count: int, target: Any, arguments: Sequence[Any], folder: Path, gpus: int, gpus_each: int
    ) -> "Bench":
        self.workers.append(count)
        self.gpus_each.append(gpus_each)
        folder.mkdir(parents=True, exist_ok=True)
        self._work = lambda: target(0, *arguments)
        return self

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start_missing(self) -> None:
        """One worker, in this process, does all trials."""
        self._work()

    def clear_ended(self) -> bool:
        return True

    @property
    def study(self) -> optuna.Study:
        """As it was left in its storage."""
        return optuna.load_study(study_name="mine", storage=f"sqlite:///{self.folder}/elsewhere.db")


@pytest.fixture(scope="module")
def bench(fresh_workplace) -> Bench:
    """On which a sweep ran, whose trials took no time."""
    run_trials, leadership = workers.run_trials, study_run.Leadership

    def note_study(study: optuna.Study, *more: Any, **named: Any) -> bool:
        bench.studies.append(study)
        return run_trials(study, *more, **named)

    def note_lapse(study: optuna.Study, seconds: float) -> Any:
        bench.lapses.append(seconds)
        return leadership(study, seconds)

    with fresh_workplace().entered() as folder, pytest.MonkeyPatch.context() as patch:
        bench = Bench(folder)
        patch.setattr(sweep, "train", bench.train)
        patch.setattr(sweep.evaluate, "run", bench.evaluate)
        patch.setattr(workers, "Workers", bench)
        for module in (study_run, workers, best):
            patch.setattr(module, "call", bench.call)
        patch.setattr(workers, "run_trials", note_study)
        patch.setattr(study_run, "Leadership", note_lapse)
        patch.setattr(study_run, "log_report", lambda *arguments: None)
        patch.setattr(workers, "POLL_SECONDS", 0.01)
        patch.setattr("pipeline.sweep.leader.SECONDS_TO_SETTLE", 0.01)
        values = VALUES | {"space": SPACE, "storage": f"sqlite:///{folder}/elsewhere.db"}
        sweep.run(recipe_on(draw_pictures(folder / "pictures"), sweep=values))
        return bench


ARRIVES: dict[str, Callable[[Any], bool]] = {
    "sweep.trials": lambda bench: len(bench.study.trials) == 4,
    "sweep.workers": lambda bench: set(bench.workers) == {3},
    # The finder, the trials, and the best with its seeds.
    "sweep.gpus_per_trial": lambda bench: set(bench.gpus_each) == {2}
    and bench.called == [(2, "_suggestions"), (2, "run_worker"), (2, "_train_seeds")],
    "sweep.storage": lambda bench: (bench.folder / "elsewhere.db").is_file()
    and not list(bench.folder.rglob("sweeps.db")),
    "sweep.name": lambda bench: bench.study.study_name == "mine",
    "sweep.objective": lambda bench: bench.study.directions == [StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE]
    and all(values_of(trial) == [0.5, 0.7] for trial in bench.study.trials),
    "sweep.sampler": lambda bench: {type(study.sampler) for study in bench.studies} == {GPSampler},
    "sweep.pruner": lambda bench: {type(study.pruner) for study in bench.studies} == {MedianPruner},
    # The finder and four trials with the recipe's own seed, then the best with its seeds.
    "sweep.seeds": lambda bench: bench.seeds == [3] * 5 + [3, 4] and len(bench.evaluated) == 1,
    "sweep.heartbeat_seconds": lambda bench: bench.lapses == [3 * 7]
    and {study._storage.get_heartbeat_interval() for study in bench.studies} == {7},
    "sweep.space": lambda bench: all(set(trial.params) == set(SPACE) for trial in bench.study.trials)
    and all(0.05 <= trial.params["fine_tune.weight_decay"] <= 0.25 for trial in bench.study.trials),
}  # fmt: skip


@pytest.mark.parametrize("key", ARRIVES)
def test_a_key_of_a_sweep_arrives_in_its_study(key, bench):
    assert flatten(Recipe())[key] != (VALUES | {"space": SPACE, "storage": "elsewhere"})[key.removeprefix("sweep.")]
    assert ARRIVES[key](bench)


@pytest.fixture(scope="module")
def heads(fresh_workplace) -> dict[str, Any]:
    """Heads that were compared on stored activations: what was trained, by which batches, and the files of the run."""
    seen: dict[str, Any] = {}
    train_settings, range_tests = sweep_head_work.train_settings, sweep_head_work.range_tests

    def note_settings(settings: Any, seeds: Any, shape: Any, train: Any, valid: Any, recipe: Any) -> pd.DataFrame:
        seen.update(settings=settings, seeds=list(seeds), shape=shape, train=train, valid=valid)
        return train_settings(settings, seeds, shape, train, valid, recipe)

    def note_finder(seeds: Any, shape: Any, tested: Any, batches: Any, settings: Any, options: Any) -> Any:
        seen.update(finder_seeds=list(seeds), finder_dropout=tested.dropout, finder_batch_size=batches.batch_size)
        return range_tests(seeds, shape, tested, batches, settings, options)

    with fresh_workplace().entered() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_head_work, "train_settings", note_settings)
        patch.setattr(sweep_head_work, "range_tests", note_finder)
        recipe = recipe_on(draw_pictures(folder / "pictures"), sweep_head=HEADS)
        done = sweep_head.run(recipe, precompute.run(recipe).run_id)
        files = Path(mlflow.get_run(done.run_id).info.artifact_uri)
        table, curve = pd.read_csv(files / "heads.csv"), pd.read_csv(files / "lr_band.csv")
        return seen | {"table": table, "drawn": table[table["setting"] > 0], "curve": curve}


def within(name: str, low: float, high: float) -> Callable[[Any], bool]:
    """All that was drawn lies in the range, and is not always the same."""
    return lambda heads: heads["drawn"][name].between(low, high).all() and len(set(heads["drawn"][name])) > 1


HEADS_ARRIVE: dict[str, Callable[[Any], bool]] = {
    "sweep_head.settings": lambda heads: heads["table"]["setting"].nunique() == len(heads["settings"]) == 5,
    "sweep_head.seeds": lambda heads: set(heads["table"]["seed"]) == set(heads["seeds"]) == {3, 4, 5},
    "sweep_head.finder_seeds": lambda heads: heads["finder_seeds"] == [3, 4, 5, 6, 7, 8],
    "sweep_head.lr": within("lr", 0.1, 0.2),
    "sweep_head.weight_decay": within("weight_decay", 1.0, 2.0),
    "sweep_head.dropout": within("dropout", 0.11, 0.12),
    "sweep_head.label_smoothing": within("label_smoothing", 0.21, 0.22),
    "sweep_head.stored_epochs": within("stored_epochs", 11, 12),
}


@pytest.mark.parametrize("key", HEADS_ARRIVE)
def test_a_key_of_a_comparison_of_heads_arrives_in_what_is_trained(key, heads):
    assert flatten(Recipe())[key] != HEADS[key.removeprefix("sweep_head.")]
    assert HEADS_ARRIVE[key](heads)


def test_heads_are_compared_with_the_recipes_own_by_its_own_batches(heads):
    own = heads["table"][heads["table"]["setting"] == 0].iloc[0]
    names = ["lr", "weight_decay", "dropout", "label_smoothing", "stored_epochs"]
    assert own[names].tolist() == pytest.approx([0.004, 0.04, 0.3, 0.12, 2])
    assert (heads["shape"].hidden, heads["train"].batch_size, heads["train"].seed) == (24, 6, 3)
    assert (len(heads["train"].rows), len(heads["valid"].rows)) == (3 * 10, 3 * 5)
    assert not set(heads["train"].rows) & set(heads["valid"].rows)


def test_the_finder_of_heads_is_set_by_its_own_section(heads):
    assert (heads["finder_dropout"], heads["finder_batch_size"]) == (0.3, 6)
    assert heads["curve"]["lr"].iloc[0] == pytest.approx(1e-5)
    assert heads["curve"]["lr"].iloc[1] == pytest.approx(1e-5 * (2.0 / 1e-5) ** (1 / 29))
