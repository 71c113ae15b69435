"""Compares evaluated runs: their settings, their metrics, and whether a difference is more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd
from scipy.stats import binomtest

from pipeline.evaluation.metrics import confusion
from pipeline.system.errors import UserError

# Below this p-value a difference is called more than chance.
SIGNIFICANT = 0.05
NOT_COMPARED = ("device", "reuse", "compile")


@dataclass(frozen=True)
class EvaluatedRun:
    """A run's `name` in the report, its flat recipe `settings`, its final `metrics`, its `curves` (metric → table of
    `step` and `value`), and the `evaluated` pictures: `hash`, `label` and `predicted` of each in `split`."""

    name: str
    run_id: str
    settings: Mapping[str, object]
    metrics: Mapping[str, float]
    split: str
    classes: Sequence[str]
    evaluated: pd.DataFrame
    curves: Mapping[str, pd.DataFrame]


def align(runs: Sequence[EvaluatedRun]) -> list[pd.DataFrame]:
    """Each run's evaluated pictures in a common order; UserError unless all were evaluated on the same content."""
    tables = [run.evaluated.sort_values(["hash", "label"]).reset_index(drop=True) for run in runs]
    first, contents = runs[0], [_contents(table) for table in tables]
    for run, content in zip(runs, contents, strict=True):
        if run.split == first.split and content == contents[0]:
            continue
        shared = len(set(content) & set(contents[0]))
        raise UserError(
            f"{first.name} was evaluated on {len(contents[0])} {first.split} pictures and {run.name} on {len(content)} "
            f"{run.split} pictures, of which {shared} are the same with the same label: figures on different pictures "
            "cannot be compared; give runs with the same data, seed and data.test_fraction."
        )
    return tables


def differing_settings(runs: Sequence[EvaluatedRun]) -> pd.DataFrame:
    """A row for each key of the recipe that is not the same in all runs, a column for each run."""
    keys = [key for key in runs[0].settings if key not in NOT_COMPARED]
    rows = [[key, *(str(run.settings.get(key)) for run in runs)] for key in keys]
    return pd.DataFrame([row for row in rows if len(set(row[1:])) > 1], columns=["key", *(run.name for run in runs)])


def metrics_table(runs: Sequence[EvaluatedRun]) -> pd.DataFrame:
    """A row for each final metric that any run has, a column for each run; NaN where a run lacks it."""
    every = sorted({name for run in runs for name in run.metrics})
    chosen = dict.fromkeys((f"{runs[0].split}/", "valid/", "plain_overfit_gap"))
    names = [name for start in chosen for name in every if name.startswith(start)]
    columns = {run.name: [run.metrics.get(name, float("nan")) for name in names] for run in runs}
    return pd.DataFrame({"metric": names, **columns})


def mcnemar_table(runs: Sequence[EvaluatedRun], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """McNemar's exact test for each pair of runs (McNemar 1947): `run`, `other`, on how many pictures only one of
    them is right, `only_run` and `only_other`, and `p`, the chance of so uneven a division if both are as good.

    `tables` are those of `align`.
    """
    rows = []
    for (run, table), (other, theirs) in combinations(list(zip(runs, tables, strict=True)), 2):
        right, right_too = table["predicted"] == table["label"], theirs["predicted"] == theirs["label"]
        only_run, only_other = int((right & ~right_too).sum()), int((right_too & ~right).sum())
        p = float(binomtest(only_run, only_run + only_other).pvalue) if only_run + only_other else 1.0
        rows.append((run.name, other.name, only_run, only_other, p))
    return pd.DataFrame(rows, columns=["run", "other", "only_run", "only_other", "p"])


def confusion_differences(runs: Sequence[EvaluatedRun]) -> dict[str, pd.DataFrame]:
    """For each run but the first, by name: its confusion counts less the first one's."""
    first = confusion(runs[0].evaluated, runs[0].classes)
    return {run.name: confusion(run.evaluated, runs[0].classes) - first for run in runs[1:]}


def describe_tests(runs: Sequence[EvaluatedRun], tests: pd.DataFrame) -> str:
    """A sentence for each pair: which is right more often, and whether that is more than chance."""
    sentences = []
    for run, other, only_run, only_other, p in tests.itertuples(index=False, name=None):
        if only_run == only_other:
            sentences.append(f"{run} and {other} are right on equally many pictures.")
            continue
        better, worse = (run, other) if only_run > only_other else (other, run)
        chance = "which is more than chance" if p < SIGNIFICANT else "which may well be chance"
        more = abs(only_run - only_other)
        sentences.append(
            f"{better} is right on {more} more of {len(runs[0].evaluated)} than {worse}, {chance} (p = {p:.2g})."
        )
    if len(tests) > 1:
        sentences.append(f"Of {len(tests)} tests, one in twenty falls below {SIGNIFICANT} by chance alone.")
    return " ".join(sentences)


def _contents(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(table[["hash", "label"]].itertuples(index=False, name=None))
