"""The study: where it is stored, which sampler chooses the next trial, and which pruner ends a hopeless one."""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import Trial
from pydantic import TypeAdapter
from sqlalchemy.exc import SQLAlchemyError

from pipeline.cache.hashing import content_key, file_checksum
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.recipe.sweep_sections import Choice, IntRange, LogUniformRange, Range
from pipeline.sweep.space import Space, Value
from pipeline.system.errors import UserError

Found = TypeVar("Found")
DEFAULT_FILE = "sweeps.db"
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "valid/accuracy": "maximize",
    "valid/macro_f1": "maximize",
    "valid/loss": "minimize",
    "train/seconds": "minimize",
}
# Keys that change how a trial is run, but not its result.
HOW_IT_RUNS = (
    "device", "reuse", "compile", "data.source", "data.max_store_gib", "data.max_logged_gib", "data.max_download_gib",
    "data.recheck_hours",
)  # fmt: skip
OBJECTIVES, GIVEN_SPACE, DATA, SETTINGS, SPACE = "objectives", "given space", "data", "settings", "space"
MOST_NAMED = 4  # settings that differ, in a sentence
DEFAULTS = training_settings(Recipe())
# A worker that misses so many heartbeats is taken for dead.
MISSED_HEARTBEATS = 3
SECONDS_FOR_A_LOCK = 60.0
ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 10, 0.5


optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=ExperimentalWarning)
# Queues an interrupted trial again, with its values so far, so that the pruner does not evaluate these twice.
RETRY = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)


def storage_url(storage: str) -> str:
    """The URL of the storage that the recipe names, or, if it names none, of a file in the working folder."""
    return storage or f"sqlite:///{Path(DEFAULT_FILE).absolute()}"


def open_storage(url: str, heartbeat_seconds: int, make_tables: bool) -> RDBStorage:
    """The storage at `url`; its tables are made once, before workers start. UserError if it cannot be used.

    A trial whose worker has missed some heartbeats fails, and is queued again.
    """
    kwargs = {"connect_args": {"timeout": SECONDS_FOR_A_LOCK}} if url.startswith("sqlite:") else {"pool_pre_ping": True}

    def connect() -> RDBStorage:
        return RDBStorage(
            url,
            engine_kwargs=kwargs,
            skip_compatibility_check=not make_tables,
            skip_table_creation=not make_tables,
            heartbeat_interval=heartbeat_seconds,
            grace_period=MISSED_HEARTBEATS * heartbeat_seconds,
            heartbeat_stale_trial_callback=RETRY,
        )

    try:
        return _retry(connect) if make_tables else connect()
    except (SQLAlchemyError, ImportError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"The storage {_without_password(url)} cannot be used ({reason}); start it, or correct sweep.storage."
        ) from None


@contextmanager
def report_lost_storage(url: str) -> Iterator[None]:
    """UserError if the storage at `url` is lost within the block."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(
            f"The storage {_without_password(url)} was lost ({reason}); when it is back, the same command "
            "continues the study."
        ) from None


def study_name(given: str, data: str, settings: Mapping[str, object], space: Space, objectives: Sequence[str]) -> str:
    """The name of the study of these settings on the pictures called `data`: the one that is `given`, or, for "auto",
    another one for everything that makes trials incomparable."""
    if given != "auto":
        return given
    about = {"settings": {key: value for key, value in settings.items() if key not in HOW_IT_RUNS}}
    return f"{data}-{content_key(about | {'space': _plain(space), 'objectives': list(objectives)})[:8]}"


def open_study(storage: RDBStorage, name: str, objectives: Sequence[str]) -> optuna.Study:
    """The study called `name`, created if there is none."""
    directions = [DIRECTIONS[objective] for objective in objectives]

    def load_or_create() -> optuna.Study:
        if name in optuna.get_all_study_names(storage):
            return optuna.load_study(study_name=name, storage=storage)
        return optuna.create_study(study_name=name, storage=storage, directions=directions)

    return _retry(load_or_create)  # if two create it at once, one of them fails, and loads it then


def terms_of(recipe: Recipe, data: str, digest: str) -> dict[str, object]:
    """What all trials of this recipe, on the pictures called `data` with this `digest`, must share to be comparable:
    the objectives, the space, the pictures, and the settings that do not vary and change a trial's result."""
    varied = {".".join(key.split(".")[:2]) for key in recipe.sweep.space}
    settings = {key: value for key, value in training_settings(recipe).items() if _is_term(key) and key not in varied}
    weights = Path(recipe.model.weights).expanduser()
    if "model.weights" in settings and weights.is_file():  # which may lie elsewhere on another machine
        settings["model.weights"] = f"sha256:{file_checksum(weights)}"
    return {
        OBJECTIVES: recipe.sweep.objectives,
        GIVEN_SPACE: _plain(recipe.sweep.space),
        DATA: {"name": data, "digest": digest},
        SETTINGS: settings,
    }


def check_terms(study: optuna.Study, terms: Mapping[str, Any]) -> None:
    """UserError, which says what differs, if the study has other terms; one that an earlier version of the project made
    says only some of its terms, and is compared by these."""
    known = study.user_attrs
    directions = [direction.name.lower() for direction in study.directions]
    if OBJECTIVES not in known and study.get_trials(deepcopy=False):
        raise UserError(f"The study {study.study_name} has trials of another program; give another sweep.name.")
    if directions != [DIRECTIONS[one] for one in terms[OBJECTIVES]]:
        known.setdefault(OBJECTIVES, directions)
    refuse_other_terms(study.study_name, list(_differences(known, terms)))


def refuse_other_terms(study_name: str, differences: Sequence[str]) -> None:
    """UserError if there are `differences`, in words, between a study and what it is to be continued with."""
    if not differences:
        return
    named, more = list(differences[:MOST_NAMED]), len(differences) - MOST_NAMED
    named += [f"{more} more"] if more > 0 else []
    words = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]
    raise UserError(
        f"The study {study_name} differs in {words}, so that new trials could not be compared with those it has; give "
        "another sweep.name, or what the study has."
    )


def describe_study(
    study: optuna.Study,
    objectives: Sequence[str],
    given: Space,
    space: Space,
    terms: Mapping[str, object] | None = None,
) -> None:
    """Store in a new study its objectives, the space as it was given and as it is searched, and all its `terms`.

    UserError if the study has others.
    """
    about = {OBJECTIVES: list(objectives), GIVEN_SPACE: _plain(given)} | dict(terms or {})
    check_terms(study, about)
    known = study.user_attrs
    for key, value in (about | {SPACE: _plain(space)}).items():
        if key not in known:
            study.set_user_attr(key, value)


def space_of(study: optuna.Study) -> dict[str, Range]:
    """The space that a described study searches."""
    return TypeAdapter(dict[str, Range]).validate_python(study.user_attrs[SPACE])


def sampler_seed(seed: int, started: int, worker: int) -> int:
    """Another seed for each worker, and for each command that continues a study after `started` trials: with the same
    one they would choose the same values."""
    return int(content_key({"seed": seed, "started": started, "place": worker})[:8], 16)


def build_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler that chooses the next trial. The points of a grid are queued; trials beyond them are random."""
    if name == "tpe":
        return TPESampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed)
    if name == "cmaes":
        return CmaEsSampler(seed=seed)
    return RandomSampler(seed=seed)


def build_pruner(name: str, most_epochs: int) -> BasePruner:
    """The pruner that ends a hopeless trial: by successive halving in several brackets (Li et al. 2018, "Hyperband"),
    or if it is worse than the median of the earlier ones at the same epoch."""
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=most_epochs, reduction_factor=3)
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    return NopPruner()


def suggest(trial: Trial, space: Space) -> dict[str, Value]:
    """The trial's value of each key."""
    return {key: _suggest(trial, key, values) for key, values in space.items()}


def _suggest(trial: Trial, key: str, values: Range) -> Value:
    if isinstance(values, Choice):
        chosen = trial.suggest_categorical(key, values.of)
        assert chosen is not None
        return chosen
    if isinstance(values, IntRange):
        return trial.suggest_int(key, values.low, values.high)
    return trial.suggest_float(key, values.low, values.high, log=isinstance(values, LogUniformRange))


def _is_term(key: str) -> bool:
    """Whether the result of a trial may depend on this setting; the pictures have a digest of their own."""
    return key not in HOW_IT_RUNS and not key.startswith("evaluate.")


def _differences(known: Mapping[str, Any], terms: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the terms that a study is known to have and others, of those that both have, in words."""
    given = {**terms, **known}
    if given[OBJECTIVES] != terms[OBJECTIVES]:
        yield difference("its objectives", *(", ".join(one[OBJECTIVES]) for one in (given, terms)))
    there, here = given[GIVEN_SPACE], terms[GIVEN_SPACE]
    keys = [key for key in there | here if there.get(key) != here.get(key)]
    if keys:
        ranges = ("; ".join(f"{key} {_range_in_words(space.get(key))}" for key in keys) for space in (there, here))
        yield difference("its given space", *ranges)
    if DATA in terms and given[DATA]["digest"] != terms[DATA]["digest"]:
        yield difference(
            "its data", *(f"{one[DATA]['name']}, digest {one[DATA]['digest'][:8]}" for one in (given, terms))
        )
    for key, value in terms.get(SETTINGS, {}).items():
        # A key that came after the study was made had its default.
        was = given[SETTINGS].get(key, DEFAULTS.get(key))
        if was != value and key not in {".".join(varied.split(".")[:2]) for varied in there}:
            yield difference(key, was, value)


def difference(what: str, there: object, here: object) -> str:
    """A term of a study, and what a command has instead, in words."""
    return f"{what} ({there} there, {here} here)"


def _range_in_words(values: Mapping[str, object] | None) -> str:
    """Such as "type int, low 1, high 3"."""
    return "fixed" if values is None else ", ".join(f"{name} {value}" for name, value in values.items())


def _plain(space: Space) -> dict[str, object]:
    return {key: values.model_dump() for key, values in space.items()}


def _retry(call: Callable[[], Found]) -> Found:
    """The result of `call`, tried a few times: if several processes create the same at once, all but one fail."""
    for _ in range(ATTEMPTS - 1):
        with suppress(SQLAlchemyError, StorageInternalError, DuplicatedStudyError):
            return call()
        time.sleep(SECONDS_BETWEEN_ATTEMPTS)
    return call()


def _without_password(url: str) -> str:
    return re.sub(r"://([^:/@]*):[^@]*@", r"://\1:…@", url)
