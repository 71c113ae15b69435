"""Settings of a head compared over several seeds: tables of the heads and of the settings, the best, and whether its
lead is more than the seeds' noise."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.head_settings import Setting
from pipeline.many_heads import HeadSetting, train_heads

# The chance at which a setting is taken to be better than the recipe's own though none is.
MISTAKEN = 0.05


@dataclass(frozen=True)
class Lead:
    """How far the best setting lies above the recipe's own in mean validation accuracy, and how far the best of so many
    would come to lie by the seeds' noise alone, but for one time in twenty; NaN where there is one seed."""

    difference: float
    by_noise: float

    @property
    def is_more_than_noise(self) -> bool:
        """Whether the noise cannot explain it."""
        return self.difference > self.by_noise


def train_settings(
    settings: Sequence[Setting], seeds: Sequence[int], classes: int, hidden: int, train: Batches, valid: Batches
) -> pd.DataFrame:
    """A row for each of `settings` with each of `seeds`: `setting` (its number), `seed`, the setting's fields,
    `train_loss`, `valid_loss`, `valid_accuracy` and `valid_macro_f1` of the last epoch (NaN if it has `diverged`).

    Settings of as many epochs are trained at once. Nothing but `valid` judges them.
    """
    rows = []
    for epochs in sorted({setting.stored_epochs for setting in settings}):
        chosen = [(number, one) for number, one in enumerate(settings) if one.stored_epochs == epochs]
        pairs = [(number, one, seed) for number, one in chosen for seed in seeds]
        heads = [
            HeadSetting(seed, one.lr, one.weight_decay, one.dropout, one.label_smoothing) for _, one, seed in pairs
        ]
        trained = train_heads(heads, classes, hidden, train, valid, [epochs])
        for (number, one, seed), head in zip(pairs, trained, strict=True):
            last = head.valid[-1]
            results = (head.train_losses[-1], last.loss, last.accuracy, last.macro_f1)
            names = ("train_loss", "valid_loss", "valid_accuracy", "valid_macro_f1")
            known = zip(names, [math.nan] * 4 if head.diverged else results, strict=True)
            rows.append({"setting": number, "seed": seed, **asdict(one), **dict(known), "diverged": head.diverged})
    return pd.DataFrame(rows).sort_values(["setting", "seed"], kind="stable", ignore_index=True)


def compare_settings(heads: pd.DataFrame, own: int) -> pd.DataFrame:
    """A row per setting, the best first: by mean validation accuracy over the seeds, ties by mean loss, and those of
    which a head diverged last. `is_own` marks the recipe's own, number `own`; each result has its `_mean` and `_std`
    over the seeds (NaN with one seed), and `diverged` counts heads. UserError if no setting is without one."""
    results = ["valid_accuracy", "valid_loss", "valid_macro_f1", "train_loss"]
    by_setting = heads.groupby("setting", sort=True)
    table = by_setting[["lr", "weight_decay", "dropout", "label_smoothing", "stored_epochs"]].first()
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


def lead_of_best(settings: pd.DataFrame, seeds: int) -> Lead:
    """The lead of the first row of `compare_settings` over the recipe's own, beside what noise alone would give.

    The noise is the spread over seeds within a setting, pooled over the better half of them, since rates that are too
    high spread far more. By Student's t with Bonferroni's correction, since the best of many is looked at.
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
