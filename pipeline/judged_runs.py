"""Runs that are to be compared, read whole: the run, all that it built on, and the pictures that it was judged on."""

from collections.abc import Sequence

import pandas as pd

from pipeline.comparison import JudgedRun
from pipeline.contract import RunRef
from pipeline.execute import RECIPE_FILE, nearest
from pipeline.manifest import load_manifest
from pipeline.recipe import training_settings
from pipeline.recipe_file import read_recipe

CURVES = ("train/loss", "valid/loss", "valid/accuracy", "overfit/gap")
SHORT_ID = 8


def read_judged_run(run_id: str) -> JudgedRun:
    """All that is compared of a run of main or evaluate; UserError if it has not been evaluated."""
    from pipeline import tracking

    evaluate_id, run_name = tracking.evaluation_of(run_id)
    chain = [tracking.run_of(evaluate_id)]
    while chain[-1].upstream is not None:
        chain.append(tracking.run_of(chain[-1].upstream))
    split = tracking.evaluated_on(chain[0].run_id)
    curves = {metric: tracking.read_curve([ref.run_id for ref in chain[:0:-1]], metric) for metric in CURVES}
    manifest = load_manifest(tracking.artifact(nearest(chain, "precompute").run_id, "manifest"))
    return JudgedRun(
        name=f"{run_name} ({run_id[:SHORT_ID]})",
        run_id=run_id,
        settings=training_settings(read_recipe(tracking.artifact(chain[0].run_id, RECIPE_FILE))),
        metrics=chain[0].metrics,
        split=split,
        classes=manifest.classes,
        judged=_judged(chain, manifest.table["hash"], split),
        curves={metric: points for metric, points in curves.items() if len(points)},
    )


def _judged(chain: Sequence[RunRef], hashes: "pd.Series[str]", split: str) -> pd.DataFrame:
    from pipeline import tracking

    kinds = {"row": int, "split": str, "label": str, "predicted": str}
    path = tracking.artifact(chain[0].run_id, "predictions.csv")
    table = pd.read_csv(path, usecols=list(kinds), dtype=kinds, keep_default_na=False)
    table = table[table["split"] == split]
    return pd.DataFrame(
        {"hash": hashes.iloc[table["row"]].to_numpy(), "label": table["label"], "predicted": table["predicted"]}
    ).reset_index(drop=True)
