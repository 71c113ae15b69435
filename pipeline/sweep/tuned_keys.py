"""The keys that are tuned: where each value lies in its range, for all scales alike, and how much each key matters."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import pandas as pd
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from pipeline.drawn_names import drawn_names
from pipeline.sweep.trials import complete_trials, values_of

FEWEST_TO_WEIGH = 10
# Of few trials, a tenth, as is optuna's default, are too few to tell chance from cause; its makers advise five or more.
SHARE_OF_GOOD = 0.3
DRAWS, SHARE_OF_DRAW = 20, 0.8


@dataclass(frozen=True)
class Key:
    """A key that is tuned: its range, `low` to `high`, even in the logarithm where `is_log`; or its `choices`."""

    name: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[object, ...] = ()

    def place(self, value: object) -> float:
        """Where the value lies: 0 at the low end, 1 at the high one; NaN for none."""
        if value is None:
            return math.nan
        if self.choices:
            return self.choices.index(value) / (len(self.choices) - 1)
        low, high, number = (math.log(end) if self.is_log else end for end in (self.low, self.high, float(str(value))))
        return (number - low) / (high - low)

    def ticks(self, most: int = 4) -> list[tuple[float, str]]:
        """A few round values as (place, text)."""
        if self.choices:
            texts = drawn_names([str(choice) for choice in self.choices], longest=14)
            return [(self.place(choice), text) for choice, text in zip(self.choices, texts, strict=True)]
        values = self._round_in_log(most) if self.is_log else self._round(most)
        return [(self.place(value), _short(value)) for value in values]

    def _round(self, most: int) -> list[float]:
        values = MaxNLocator(most, integer=self.is_whole, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        slack = 1e-9 * (self.high - self.low)
        return [float(value) for value in values if self.low - slack <= value <= self.high + slack]

    def _round_in_log(self, most: int) -> list[float]:
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            values = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
            inside = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
            if len(inside) >= 3:
                return inside[:: -(-len(inside) // (most + 1))]
        return [self.low, self.high]


def varied_keys(trials: Sequence[FrozenTrial]) -> list[Key]:
    """The keys that differ between `trials`, each with the range that holds all of its values."""
    names = dict.fromkeys(name for trial in trials for name in trial.params)
    keys = []
    for name in names:
        having = [trial for trial in trials if name in trial.params]
        if len({repr(trial.params[name]) for trial in having}) > 1:
            keys.append(_key(name, having))
    return keys


def weighed_keys(study: optuna.Study) -> pd.DataFrame:
    """How much each `key` matters for being among the best 30 % in the first objective, as a `share` of 1, the most
    important first, and between which shares, `low` and `high`, it lies in nine of ten draws of 80 % of the trials.

    By PED-ANOVA (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255); no row for fewer than 10 complete trials,
    or fewer than two keys that differ.
    """
    trials = [trial for trial in complete_trials(study) if np.isfinite(values_of(trial)[0])]
    names = [key.name for key in varied_keys(trials)]
    if len(trials) < FEWEST_TO_WEIGH or len(names) < 2:
        return pd.DataFrame({"key": [], "share": [], "low": [], "high": []})
    shares = _shares(study, trials, names)
    random = np.random.default_rng(0)
    size = round(SHARE_OF_DRAW * len(trials))
    draws = [random.choice(len(trials), size, replace=False) for _ in range(DRAWS)]
    drawn = np.array([_shares(study, [trials[place] for place in sorted(draw)], names) for draw in draws])
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    table = pd.DataFrame({"key": names, "share": shares, "low": low, "high": high})
    return table.sort_values("share", ascending=False, ignore_index=True)


def _shares(study: optuna.Study, trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[float]:
    with warnings.catch_warnings(action="ignore"):
        alone = optuna.create_study(direction=study.directions[0])
        for trial in trials:
            alone.add_trial(
                optuna.create_trial(value=values_of(trial)[0], params=trial.params, distributions=trial.distributions)
            )
        found = get_param_importances(alone, evaluator=PedAnovaImportanceEvaluator(target_quantile=SHARE_OF_GOOD))
    return [found.get(name, 0.0) for name in names]


def _key(name: str, trials: Sequence[FrozenTrial]) -> Key:
    ranges = [trial.distributions[name] for trial in trials]
    if isinstance(ranges[-1], CategoricalDistribution):
        every = {repr(choice): choice for one in ranges for choice in getattr(one, "choices", ())}
        every |= {repr(trial.params[name]): trial.params[name] for trial in trials}
        return Key(name, choices=tuple(every.values()))
    numbers = [one for one in ranges if isinstance(one, FloatDistribution | IntDistribution)]
    values = [float(trial.params[name]) for trial in trials]
    return Key(
        name,
        low=min([*values, *(one.low for one in numbers)]),
        high=max([*values, *(one.high for one in numbers)]),
        is_log=all(one.log for one in numbers),
        is_whole=all(isinstance(one, IntDistribution) for one in numbers),
    )


def _short(value: float) -> str:
    text = f"{value:g}"
    return text.replace("e-0", "e-").replace("e+0", "e")
