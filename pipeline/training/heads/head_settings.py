"""Settings of a head: the recipe's own and others drawn from ranges, trained and compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

import numpy as np
import pandas as pd
from scipy.stats import qmc
from scipy.stats import t as student

from pipeline.data.batches import Batches
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sweep_sections import HEAD_KEYS, Choice, IntRange, LogUniformRange, Range
from pipeline.system.console import say
from pipeline.system.errors import UserError
from pipeline.training.heads.many_heads import HeadSetting, SharedSettings, train_heads
from pipeline.training.heads.stacked_heads import HeadShape

Value: TypeAlias = bool | int | float | str
# The chance at which a setting is taken to be better than the recipe's own though none is.
MISTAKEN = 0.05
RESULTS = ("train_loss", "valid_loss", "valid_accuracy", "valid_macro_f1")


def settings_to_compare(recipe: Recipe, lr: float) -> list[HeadSetting]:
    """The recipe's own setting with the rate `lr`, and others drawn from the ranges of its sweep_head."""
    own = recipe.train_head
    ranges = {name: getattr(recipe.sweep_head, name) for name in HEAD_KEYS}
    return [
        HeadSetting(lr, own.weight_decay, recipe.head.dropout, own.label_smoothing, own.stored_epochs),
        *draw_settings(ranges, recipe.sweep_head.settings - 1, recipe.seed),
    ]


def draw_settings(ranges: Mapping[str, Range], count: int, seed: int) -> list[HeadSetting]:
    """`count` settings with a value from the range of each of `HEAD_KEYS`, spread evenly by a scrambled Sobol sequence.

    Sobol 1967; Owen 1995, "Randomly permuted (t,m,s)-nets and (t,s)-sequences", for the scrambling. Fewer settings are
    the first of more, up to the next power of two.
    """
    if count == 0:
        return []
    points = qmc.Sobol(len(HEAD_KEYS), scramble=True, rng=seed).random_base2((count - 1).bit_length())[:count]
    return [
        HeadSetting(**{name: value_at(ranges[name], share) for name, share in zip(HEAD_KEYS, point, strict=True)})  # type: ignore[arg-type]
        for point in points.tolist()
    ]


def value_at(values: Range, share: float) -> Value:
    """The value that lies at this share, from 0 to below 1, of a range."""
    if isinstance(values, Choice):
        return values.of[int(share * len(values.of))]
    if isinstance(values, IntRange):
        return values.low + int(share * (values.high - values.low + 1))
    if isinstance(values, LogUniformRange):
        return float(values.low * (values.high / values.low) ** share)
    return float(values.low + (values.high - values.low) * share)


def with_setting(recipe: Recipe, setting: HeadSetting) -> Recipe:
    """The recipe that trains its head with this setting."""
    content = recipe.model_dump()
    for name, dotted in HEAD_KEYS.items():
        section, key = dotted.split(".")
        content[section][key] = getattr(setting, name)
    return build_recipe(content, {}, "the best setting")


def train_settings(
    settings: Sequence[HeadSetting],
    seeds: Sequence[int],
    shape: HeadShape,
    train: Batches,
    valid: Batches,
    recipe: Recipe,
) -> pd.DataFrame:
    """A row for each of `settings` with each of `seeds`: `setting` (its number), `seed`, the setting's fields,
    `train_loss`, `valid_loss`, `valid_accuracy` and `valid_macro_f1` of the epoch whose weights train_head would keep
    (NaN if it has `diverged`).

    What they have in common they take from the recipe. Nothing but `valid` evaluates them.
    """
    if recipe.train_head.cycles:
        say("  heads are compared as their epochs on stored activations leave them: train_head.cycles come after those")
    pairs = [(number, replace(one, seed=seed)) for number, one in enumerate(settings) for seed in seeds]
    rows = []
    trained = train_heads([one for _, one in pairs], shape, train, valid, SharedSettings.of(recipe))
    for (number, one), head in zip(pairs, trained, strict=True):
        kept = head.valid[head.kept]
        results = (head.train_losses[head.kept], kept.loss, kept.accuracy, kept.macro_f1)
        known = dict(zip(RESULTS, [math.nan] * 4 if head.diverged else results, strict=True))
        rows.append({"setting": number, "seed": one.seed, **asdict(one), **known, "diverged": head.diverged})
    return pd.DataFrame(rows).sort_values(["setting", "seed"], kind="stable", ignore_index=True)


def compare_settings(heads: pd.DataFrame, own: int) -> pd.DataFrame:
    """A row per setting, the best first: by mean validation accuracy over the seeds, then by mean loss; settings of
    which a head diverged come last. `is_own` marks the recipe's own, number `own`; each result has its `_mean` and
    `_std` over the seeds (NaN with one seed), and `diverged` counts heads. UserError if a head of every setting
    diverged."""
    results = ["valid_accuracy", "valid_loss", "valid_macro_f1", "train_loss"]
    by_setting = heads.groupby("setting", sort=True)
    table = by_setting[list(HEAD_KEYS)].first()
    table.insert(0, "is_own", table.index == own)
    for name in results:
        table[f"{name}_mean"] = by_setting[name].mean()
        table[f"{name}_std"] = by_setting[name].std(ddof=1)
    table["diverged"] = by_setting["diverged"].sum()
    table.loc[table["diverged"] > 0, [f"{name}_mean" for name in results]] = math.nan
    if table["diverged"].all():
        raise UserError("With every setting the loss of a head turned into no number; lower the range sweep_head.lr.")
    # Means of the same accuracies in another order may differ in the last digit, which is no lead.
    rounded = table.assign(accuracy=table["valid_accuracy_mean"].round(9))
    order = rounded.sort_values(["accuracy", "valid_loss_mean"], ascending=[False, True], kind="stable").index
    return table.loc[order].reset_index()


@dataclass(frozen=True)
class Lead:
    """The `difference` in mean validation accuracy of the best setting to the recipe's own, and the one that the seeds'
    noise alone exceeds in one case of twenty, NaN with one seed."""

    difference: float
    by_noise: float

    @property
    def is_more_than_noise(self) -> bool:
        """Whether the noise cannot explain it."""
        return self.difference > self.by_noise


def lead_of_best(settings: pd.DataFrame, seeds: int) -> Lead:
    """The lead of the first row of `compare_settings` over the recipe's own, and the one that noise alone would give.

    The noise is the spread over seeds within a setting, pooled over the better half of them, since rates that are too
    high spread far more. By Student's t with Bonferroni's correction, since it is the best of many.
    """
    accuracies = settings["valid_accuracy_mean"]
    difference = float(accuracies.iloc[0] - accuracies[settings["is_own"]].item())
    better = settings["valid_accuracy_std"][accuracies >= accuracies.median()]
    freedom = len(better) * (seeds - 1)
    if freedom == 0:
        return Lead(difference, math.nan)
    noise = float(np.sqrt((better**2).mean())) * math.sqrt(2 / seeds)
    others = max(int(accuracies.notna().sum()) - 1, 1)
    return Lead(difference, float(student.ppf(1 - MISTAKEN / others, freedom)) * noise)


def describe_lead(settings: pd.DataFrame, seeds: int) -> str:
    """A sentence on whether the best setting is better than the recipe's own by more than the seeds' noise."""
    if settings["is_own"].iloc[0]:
        return "No setting is better than the recipe's own."
    if math.isnan(settings["valid_accuracy_mean"][settings["is_own"]].item()):
        return "The recipe's own setting diverged."
    lead = lead_of_best(settings, seeds)
    start = f"The best setting's mean validation accuracy is {lead.difference:.4f} above that of the recipe's own"
    if math.isnan(lead.by_noise):
        return f"{start}; with one seed that cannot be told from noise: raise sweep_head.seeds."
    compared = (
        f"by the seeds' noise alone the best of {len(settings)} would stay below {lead.by_noise:.4f} in 19 of 20 cases"
    )
    if lead.is_more_than_noise:
        return f"{start}, which is more than noise: {compared}."
    return f"{start}, which may be noise: {compared}."
