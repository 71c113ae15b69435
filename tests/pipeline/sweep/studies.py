"""Studies made of given trials, in memory, for the tests of tables, figures and the report."""

import math
import random
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

SPACE = {
    "fine_tune.cycle_len": IntDistribution(1, 3),
    "fine_tune.lr": FloatDistribution(1e-5, 1e-2, log=True),
    "fine_tune.weight_decay": FloatDistribution(1e-4, 0.3, log=True),
    "augment.strength": FloatDistribution(0.0, 2.0),
    "augment.flips": CategoricalDistribution(["none", "$sideways$"]),
}
RECIPE = {"origin": "the recipe"}


def study_of(*directions: str) -> optuna.Study:
    return optuna.create_study(directions=list(directions) or ["maximize"], study_name="a study")


def add(
    study: optuna.Study,
    value: float | Sequence[float] | None = None,
    params: Mapping[str, object] | None = None,
    curve: Sequence[float] = (),
    state: TrialState = TrialState.COMPLETE,
    system: Mapping[str, object] | None = None,
    **attributes: object,
) -> None:
    """Add a trial; `curve` is its objective by epoch, from the first one on."""
    params = dict(params or {})
    values = [value] if isinstance(value, float) else value
    study.add_trial(
        optuna.create_trial(
            state=state,
            values=values,
            params=params,
            distributions={key: SPACE[key] for key in params},
            intermediate_values=dict(enumerate(curve, start=1)),
            user_attrs=dict(attributes),
            system_attrs=dict(system or {}),
        )
    )


def drawn_study(trials: int, *directions: str, seed: int = 0) -> optuna.Study:
    """Trials at random, of which the first is the recipe's; the rate matters most. With one objective every fifth is
    pruned and every seventh fails."""
    study, dice = study_of(*directions), random.Random(seed)
    for number in range(trials):
        params: dict[str, object] = {
            "fine_tune.cycle_len": dice.randint(1, 3),
            "fine_tune.lr": 10 ** dice.uniform(-5, -2),
            "fine_tune.weight_decay": 10 ** dice.uniform(-4, -0.6),
            "augment.strength": dice.uniform(0, 2),
            "augment.flips": dice.choice(["none", "$sideways$"]),
        }
        good = 0.9 - 0.05 * (math.log10(float(str(params["fine_tune.lr"]))) + 3.5) ** 2 + dice.gauss(0, 0.003)
        attributes = RECIPE if number == 0 else {}
        if len(directions) > 1:
            add(study, [good, 10 + 100 * dice.random()], params, **attributes)
        elif number % 5 == 4:
            add(study, None, params, [good - 0.2], TrialState.PRUNED, reason="no better than the others")
        elif number % 7 == 6:
            add(study, None, params, state=TrialState.FAIL, reason="the loss is not a number")
        else:
            add(study, good, params, [good - 0.2, good - 0.05, good], **attributes)
    return study
