"""How many wrong labels of training pictures cross-validation finds, of labels that are made wrong on purpose.

    python -m benchmarks.label_errors RUN_ID [--share 0.05] [--draws 5] [--folds 5]

On the pictures and stored activations of a run, of precompute or any stage after it: in each draw this share of the
training labels is given another class at random, and the training pictures are cross-validated as evaluate does it.
Prints means over the draws. Labels that were wrong before count as found for nothing.
"""

import argparse
import os
import time
from dataclasses import replace

# As the commands do, before torch is loaded: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from pipeline.data.manifest import Manifest
from pipeline.evaluation.label_errors import training_label_errors
from pipeline.models.activations import Activations, read_activations
from pipeline.recipe.schema import Recipe
from pipeline.runs.upstream import Upstream, chain_from
from pipeline.system.device import choose_device
from pipeline.system.errors import UserError
from pipeline.training.heads.cross_validation import cross_validate

# What a person looks through: the cards of the report that have Grad-CAM.
FIRST = 24


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_id")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    given = parser.parse_args()
    up, device = Upstream(Recipe(), tuple(chain_from(given.run_id))), choose_device("auto")
    stored = read_activations(up.folder("activations", "precompute"))
    if stored.ndim != 2:
        raise UserError(f"The run {given.run_id} has no last activations stored; give one with precompute.cut=head.")
    draws = []
    for seed in range(given.draws):
        manifest, wrong = with_wrong_labels(up.manifest, given.share, seed)
        draws.append(measure(manifest, wrong, stored, given.folds, device))
    print(f"{up.manifest.name}: {len(wrong)} of {len(up.manifest.rows('train'))} training labels wrong, mean of draws")
    print(pd.DataFrame(draws).mean().round(3).to_string())


def with_wrong_labels(manifest: Manifest, share: float, seed: int) -> tuple[Manifest, npt.NDArray[np.int64]]:
    """The manifest with this share of its training labels changed to other classes, and the rows of these."""
    draw, train = np.random.default_rng(seed), manifest.rows("train")
    wrong = draw.choice(train, round(share * len(train)), replace=False)
    others = (manifest.targets[wrong] + draw.integers(1, len(manifest.classes), len(wrong))) % len(manifest.classes)
    table = manifest.table.copy()
    table.loc[wrong, "label"] = np.array(manifest.classes)[others]
    return replace(manifest, table=table), wrong


def measure(
    manifest: Manifest, wrong: npt.NDArray[np.int64], stored: Activations, folds: int, device: torch.device
) -> dict[str, float]:
    """What is found of the `wrong` rows, and the seconds that it takes."""
    began, of_cpu = time.perf_counter(), time.process_time()
    out_of_fold = cross_validate(stored, manifest, folds, 0, device)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - of_cpu
    found = training_label_errors(manifest.table, manifest.classes, out_of_fold)
    of_label = out_of_fold[np.arange(len(out_of_fold)), manifest.targets[manifest.rows("train")]]
    by_doubt = np.isin(manifest.rows("train")[np.argsort(of_label, kind="stable")], wrong)
    return {
        "doubted": len(found),
        "of these made wrong": float(found["row"].isin(wrong).mean()),
        "found of those made wrong": float(np.isin(wrong, found["row"]).mean()),
        f"made wrong among the first {FIRST}": by_doubt[:FIRST].mean(),
        "made wrong among as many as were made wrong": by_doubt[: len(wrong)].mean(),
        "by chance": len(wrong) / len(by_doubt),
        "seconds": seconds,
        "CPU seconds": cpu_seconds,
    }


if __name__ == "__main__":
    main()
