"""The sets that accuracy is measured on: their recipes, drawn pictures, and solar cells with a class that is rare."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.recipe.recipe_file import override_recipe, read_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs.fingerprint import PROJECT

SHAPES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8, "circle": 48}
SHAPE_PX, CLUTTER = 160, 14
RARE, RARER_BY = "defective", 20


def recipe_for(source: str, name: str = "", given: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of this name, by default the one that Thaw takes by itself for `source`, on one split whatever the
    seed; keys that are `given` by their dotted names are set."""
    path = PROJECT / "recipes" / f"{name or ('elpv' if source == 'elpv' else 'photos')}.yaml"
    return override_recipe(read_recipe(path), {"data.source": source, "data.split_seed": "0", **(given or {})})


def draw_shapes(folder: Path, each: int = 150) -> Path:
    """Class folders of outlines of six shapes, `each` of every one, among lines, on coloured grounds: flat drawings, as
    no photograph is."""
    for number, (label, corners) in enumerate(SHAPES.items()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for one in range(each):
            _shape(corners, Random(1000 * number + one)).save(folder / label / f"{one:03d}.png")
    return folder


def _shape(corners: int, random: Random) -> Image.Image:
    def colour() -> tuple[int, ...]:
        return tuple(random.randrange(256) for _ in range(3))

    def anywhere() -> tuple[float, float]:
        return random.uniform(0, SHAPE_PX), random.uniform(0, SHAPE_PX)

    picture = Image.new("RGB", (SHAPE_PX, SHAPE_PX), colour())
    drawing = ImageDraw.Draw(picture)
    for _ in range(CLUTTER):
        drawing.line([anywhere(), anywhere()], fill=colour(), width=random.randrange(1, 4))
    radius = random.uniform(0.18, 0.4) * SHAPE_PX
    x, y = (random.uniform(radius, SHAPE_PX - radius) for _ in range(2))
    turned, flat = random.uniform(0, 2 * math.pi), random.uniform(0.75, 1)
    points = [
        (
            x + radius * math.cos(turned + 2 * math.pi * corner / corners),
            y + flat * radius * math.sin(turned + 2 * math.pi * corner / corners),
        )
        for corner in range(corners)
    ]
    drawing.line([*points, *points[:2]], fill=colour(), width=random.randrange(2, 6), joint="curve")
    return picture.filter(ImageFilter.GaussianBlur(random.uniform(0, 1)))


def write_rare_table(folder: Path) -> Path:
    """A table of the solar cells, with copies below it, split as the recipe splits them, but with a twentieth as many
    defective cells to train on as functional ones; what is held out stays whole."""
    manifest = build_manifest(list_source("elpv", []), 0.15, 0.25, 0.01, 0)
    table = manifest.table.assign(file=manifest.paths)
    is_train, is_rare = table["split"] == "train", table["label"] == RARE
    count = int((is_train & ~is_rare).sum()) // RARER_BY
    kept = table[is_train & is_rare].sample(count, random_state=0).index
    table = table[~(is_train & is_rare) | table.index.isin(kept)]
    (folder / "cells").mkdir(parents=True)
    table = table.assign(path=[Path(shutil.copy(file, folder / "cells")).name for file in table["file"]])
    table[["path", "label", "split"]].to_csv(folder / "cells" / "table.csv", index=False)
    return folder / "cells" / "table.csv"
