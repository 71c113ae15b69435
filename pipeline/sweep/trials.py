"""The trials of a study as a table and in words: how each ended, which is best, and how many there are.

Surplus trials, which several workers started beyond the last one, are left out everywhere. An interrupted trial that
was run again is not a failure, and is counted apart.
"""

import math
from collections.abc import Sequence

import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

THE_RECIPE = "the recipe"  # the `origin` of the trial that has the recipe's own values
STATES = ("complete", "pruned", "failed", "retried", "running", "waiting")
_WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """All trials but surplus ones, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if not trial.user_attrs.get("surplus", False)]


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were trained to the end, by number."""
    return [trial for trial in trials_of(study) if trial.state == TrialState.COMPLETE]


def retries(study: optuna.Study) -> dict[int, int]:
    """For the number of each interrupted trial the number of its retry."""
    histories = {trial.number: trial.system_attrs.get("retry_history", []) for trial in trials_of(study)}
    return {history[-1]: number for number, history in histories.items() if history}


def counts(study: optuna.Study) -> dict[str, int]:
    """How many trials are complete, pruned, failed, retried, running and waiting, in this order, zeros included."""
    retried = retries(study)
    found = dict.fromkeys(STATES, 0)
    for trial in trials_of(study):
        found[_state(trial, retried)] += 1
    return found


def is_maximised(study: optuna.Study, objective: int = 0) -> bool:
    """Whether more is better for the objective of this index."""
    return study.directions[objective] == StudyDirection.MAXIMIZE


def is_recipes_own(trial: Trial | FrozenTrial) -> bool:
    """Whether the trial has the recipe's own values."""
    return bool(trial.user_attrs.get("origin") == THE_RECIPE)


def recipes_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the recipe's own values, if there is one."""
    return next((trial for trial in complete_trials(study) if is_recipes_own(trial)), None)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial that is proposed: the best in the first objective; of equal ones the best in the second, then
    the earliest; None if none is complete. It is on the Pareto front."""
    return min(complete_trials(study), key=lambda trial: (*_costs(study, trial), trial.number), default=None)


def pareto_front(study: optuna.Study) -> list[FrozenTrial]:
    """The complete trials that no other beats in one objective without being worse in another, the proposed one
    first. With one objective: the best ones, mostly a single one."""
    complete = sorted(complete_trials(study), key=lambda trial: (*_costs(study, trial), trial.number))
    return [trial for trial in complete if not any(_beats(study, other, trial) for other in complete)]


def best_so_far(study: optuna.Study, objective: int = 0) -> pd.DataFrame:
    """A row for each complete trial by `number`, with the best `value` up to it."""
    complete = complete_trials(study)
    values = pd.Series([values_of(trial)[objective] for trial in complete], dtype=float)
    best = values.cummax() if is_maximised(study, objective) else values.cummin()
    return pd.DataFrame({"number": [trial.number for trial in complete], "value": best})


def values_of(trial: FrozenTrial) -> list[float]:
    """The objectives of a complete trial."""
    values = trial.values  # noqa: PD011
    assert values is not None
    return list(values)


def last_value(trial: FrozenTrial, objective: int = 0) -> float | None:
    """The value of a complete trial; of any other the first objective after its last epoch, or None."""
    if trial.state == TrialState.COMPLETE:
        return values_of(trial)[objective]
    epochs = epochs_of(trial)
    return trial.intermediate_values[epochs] if epochs is not None and objective == 0 else None


def epochs_of(trial: FrozenTrial) -> int | None:
    """The last epoch after which the trial was evaluated; None if there is none."""
    return trial.last_step


def trial_table(study: optuna.Study, objectives: Sequence[str]) -> pd.DataFrame:
    """A row for each trial by `number`: its `state` in words, each of `objectives` (NaN unless complete), each tuned
    key, its `epochs`, the `seconds` that it took, `origin`, `reason` and `run_id`."""
    trials, retried = trials_of(study), retries(study)
    keys = list(dict.fromkeys(key for trial in trials for key in settings_of(trial)))
    columns: dict[str, object] = {
        "number": [trial.number for trial in trials],
        "state": [state_in_words(trial, retried) for trial in trials],
    }
    for index, objective in enumerate(objectives):
        values = [values_of(trial)[index] if trial.state == TrialState.COMPLETE else math.nan for trial in trials]
        columns[objective] = pd.Series(values, dtype=float)
    columns |= {key: pd.Series([settings_of(trial).get(key) for trial in trials]) for key in keys}
    columns["epochs"] = pd.Series([epochs_of(trial) for trial in trials], dtype="Int64")
    columns["seconds"] = pd.Series([trial.user_attrs.get("seconds") for trial in trials], dtype=float)
    columns |= {name: [str(trial.user_attrs.get(name, "")) for trial in trials] for name in ("origin", "reason")}
    columns["run_id"] = [str(trial.user_attrs.get("run_id", "")) for trial in trials]
    return pd.DataFrame(columns)


def settings_of(trial: FrozenTrial) -> dict[str, object]:
    """The trial's values of the tuned keys; for a queued trial those that it was queued with."""
    return dict(trial.params or trial.system_attrs.get("fixed_params", {}))


def state_in_words(trial: FrozenTrial, retried: dict[int, int]) -> str:
    """Such as "complete", "pruned at epoch 3" or "retried as 12"; `retried` is that of `retries`."""
    state = _state(trial, retried)
    if state == "pruned" and epochs_of(trial) is not None:
        return f"pruned at epoch {epochs_of(trial)}"
    return f"retried as {retried[trial.number]}" if state == "retried" else state


def verdict(study: optuna.Study, trial: FrozenTrial, objectives: Sequence[str]) -> str:
    """How the trial ended, such as "best so far: 0.8626 after 8 epochs"; it is compared with those that were complete
    before it."""
    state = state_in_words(trial, retries(study))
    if trial.state == TrialState.COMPLETE:
        return _verdict_on_complete(study, trial, objectives)
    value, reason = last_value(trial), trial.user_attrs.get("reason", "")
    at = f" at {format_objective(objectives[0], value)}" if value is not None else ""
    if trial.state == TrialState.RUNNING and at:
        return f"running,{at.removeprefix(' at')} after {_epochs(trial)}"
    if state.startswith("retried"):
        return f"interrupted; {state}"
    if trial.state == TrialState.PRUNED:
        return f"{state}{at}"
    return f"{state}: {reason}" if reason else state


def format_objective(objective: str, value: float) -> str:
    """A value of the objective as text: whole seconds, any other with four digits."""
    return f"{value:.0f} s" if objective.endswith("seconds") else f"{value:.4f}"


def _verdict_on_complete(study: optuna.Study, trial: FrozenTrial, objectives: Sequence[str]) -> str:
    earlier = [other for other in complete_trials(study) if _done_by(other) < _done_by(trial)]
    after = f" after {_epochs(trial)}" if epochs_of(trial) is not None else ""
    values = [format_objective(name, value) for name, value in zip(objectives, values_of(trial), strict=True)]
    if len(objectives) > 1:
        named = ", ".join(f"{name} {value}" for name, value in zip(objectives, values, strict=True))
        better = [other for other in earlier if _beats(study, other, trial)]
        return f"{named}{after}: " + (
            f"trial {better[0].number} is better or equal in all" if better else "on the Pareto front so far"
        )
    best = min(earlier, key=lambda other: (*_costs(study, other), other.number), default=None)
    if best is None or _costs(study, trial) < _costs(study, best):
        return f"best so far: {values[0]}{after}"
    return f"{values[0]}{after}; trial {best.number} has {format_objective(objectives[0], values_of(best)[0])}"


def _state(trial: FrozenTrial, retried: dict[int, int]) -> str:
    return "retried" if trial.number in retried else _WORDS[trial.state]


def _costs(study: optuna.Study, trial: FrozenTrial) -> tuple[float, ...]:
    """The objectives, with signs such that less is better."""
    return tuple(
        -value if is_maximised(study, objective) else value for objective, value in enumerate(values_of(trial))
    )


def _beats(study: optuna.Study, one: FrozenTrial, other: FrozenTrial) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    ours, theirs = _costs(study, one), _costs(study, other)
    return ours != theirs and all(mine <= its for mine, its in zip(ours, theirs, strict=True))


def _done_by(trial: FrozenTrial) -> tuple[float, int]:
    """When it was complete, by which trials of several workers are ordered."""
    assert trial.datetime_complete is not None
    return trial.datetime_complete.timestamp(), trial.number


def _epochs(trial: FrozenTrial) -> str:
    epochs = epochs_of(trial)
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"
