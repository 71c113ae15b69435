"""What Thaw's choices bring in accuracy, over seeds.

    python -m benchmarks.accuracy finder --sets elpv shapes            # the finder's suggestion among nine rates
    python -m benchmarks.accuracy finder --sets photos/                # the same on a folder of one's own
    python -m benchmarks.accuracy rare                                 # a class that is twenty times rarer
    python -m benchmarks.accuracy labels                               # soft labels of the solar cells
    python -m benchmarks.accuracy options --sets elpv photos/ --seeds 3    # each option of the recipe on against off
    python -m benchmarks.accuracy fastai --sets elpv photos/ --sizes 128 224      # wants requirements-bench.txt

Sets are elpv, shapes (drawn here) or folders; a folder is called by its name. Writes PART.json into --out after each
seed. A GPU takes minutes, two cores hours; fewer --seeds take less.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accuracy.finder_grid import compare_rates
from benchmarks.accuracy.options import compare_options
from benchmarks.accuracy.sets import draw_shapes, recipe_for, write_rare_table
from benchmarks.accuracy.trainings import Ready
from benchmarks.accuracy.variants import by_balance, by_labels, compare_variants
from benchmarks.side_by_side.results import machine_facts
from pipeline import tracking

PARTS = ("finder", "rare", "labels", "options", "fastai")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--sets", nargs="+", default=["elpv"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[128], help="pixels, for fastai")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--keys", nargs="+", default=[], metavar="KEY=VALUE", help="of the recipe, for the finder")
    parser.add_argument("--name", default="", help="of the file, by default the part's")
    given = parser.parse_args()
    began = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    path = given.out.resolve() / f"{given.name or given.part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # runs leave their artifacts in the working folder
        os.environ.setdefault("THAW_CACHE", f"{folder}/cache")
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        for found in _measured(given, Path(folder), home):
            rows += found
            facts = machine_facts(f"python -m benchmarks.accuracy {given.part}")
            facts |= {"seconds": (datetime.now(UTC) - began).total_seconds()}
            path.write_text(json.dumps({"rows": rows, **facts}, indent=1, ensure_ascii=False), encoding="utf-8")
            print(json.dumps(found[-1]), flush=True)


def _measured(given: argparse.Namespace, folder: Path, home: Path) -> Iterator[list[dict[str, Any]]]:
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    if given.part in ("rare", "labels"):
        variants = by_labels() if given.part == "labels" else by_balance(str(write_rare_table(folder)))
        yield from ([row] for row in compare_variants(variants, seeds))
        return
    sources = {name: _source(name, folder, home) for name in given.sets}
    if given.part == "options":
        tracking.connect()
        for name, source in sources.items():
            yield from ([row] for row in compare_options(Path(name).name, source, seeds))
        return
    if given.part == "finder":
        keys = dict(one.split("=", 1) for one in given.keys)
        for name, source in sources.items():
            yield from compare_rates(Path(name).name, Ready.of(recipe_for(source, given=keys)), seeds)
        return
    from benchmarks.accuracy.beside_fastai import compare_with_fastai  # fastai need not be there for the other parts

    for image_px in given.sizes:
        for name, source in sources.items():
            yield from ([row] for row in compare_with_fastai(Path(name).name, source, image_px, seeds))


def _source(name: str, folder: Path, home: Path) -> str:
    if name == "shapes":
        return str(draw_shapes(folder / name))
    return name if name == "elpv" else str(home / name)


if __name__ == "__main__":
    main()
