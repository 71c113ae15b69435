"""The pictures of a recipe: listed, inspected, corrected and split."""

from functools import cache

from pipeline.data.manifest import Manifest, build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.recipe.schema import Recipe
from pipeline.system.console import say


def list_pictures(recipe: Recipe) -> Manifest:
    """The manifest of the recipe's pictures."""
    data = recipe.data
    split_seed = recipe.seed if data.split_seed == "auto" else data.split_seed
    listing = list_source(data.source, data.extensions, data.corrections)
    shares = data.valid_fraction, data.test_fraction, data.max_bad
    manifest = build_manifest(listing, *shares, split_seed, data.duplicates, data.range)
    for note in manifest.notes:
        _say_once(note)
    return manifest


@cache  # once for all trials of a sweep
def _say_once(note: str) -> None:
    say(note)
