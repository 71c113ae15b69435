"""Reads runs that are to be compared: the run, the runs before it, and the pictures that it was evaluated on."""

import pandas as pd
from pandas.api.types import is_integer_dtype

from pipeline import tracking
from pipeline.evaluation.run_comparison import EvaluatedRun
from pipeline.recipe.recipe_file import read_recipe
from pipeline.recipe.schema import training_settings
from pipeline.runs.stage import RECIPE_FILE
from pipeline.runs.upstream import Upstream, chain_from
from pipeline.system.errors import UserError
from pipeline.system.tables import read_table

CURVES = ("train/loss", "valid/loss", "valid/accuracy", "overfit/gap")
SHORT_ID = 8


def read_evaluated_run(run_id: str) -> EvaluatedRun:
    """Everything that is compared of a run of main or evaluate; UserError if it has not been evaluated."""
    evaluate_id, run_name = tracking.evaluation_of(run_id)
    chain = chain_from(evaluate_id)
    split = tracking.evaluated_on(evaluate_id)
    curves = {metric: tracking.read_curve([ref.run_id for ref in chain[:0:-1]], metric) for metric in CURVES}
    recipe = read_recipe(tracking.artifact(evaluate_id, RECIPE_FILE))
    manifest = Upstream(recipe, tuple(chain)).manifest
    return EvaluatedRun(
        name=f"{run_name} ({run_id[:SHORT_ID]})",
        run_id=run_id,
        settings=training_settings(recipe),
        metrics=chain[0].metrics,
        split=split,
        classes=manifest.classes,
        evaluated=_evaluated(evaluate_id, manifest.table["hash"], split),
        curves={metric: points for metric, points in curves.items() if len(points)},
    )


def _evaluated(evaluate_id: str, hashes: "pd.Series[str]", split: str) -> pd.DataFrame:
    text = ("split", "label", "predicted")
    table = read_table(tracking.artifact(evaluate_id, "predictions.csv"), text, ("row", *text))
    if not is_integer_dtype(table["row"]):
        raise UserError(
            f"predictions.csv of run {evaluate_id} is damaged, or a name in it was not quoted; run evaluate again."
        )
    table = table[table["split"] == split]
    return pd.DataFrame(
        {"hash": hashes.iloc[table["row"]].to_numpy(), "label": table["label"], "predicted": table["predicted"]}
    ).reset_index(drop=True)
