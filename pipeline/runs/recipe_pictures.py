"""The pictures of a recipe: listed, fetched, inspected, corrected and split."""

from functools import cache

from pipeline.data.manifest import Manifest, build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.remote.fetch import fetch_listing
from pipeline.data.splits import SPLITS
from pipeline.recipe.schema import Recipe
from pipeline.system.console import say


def list_pictures(recipe: Recipe) -> Manifest:
    """The manifest of the recipe's pictures; how many there are, and what is wrong with corrections, is said."""
    data = recipe.data
    split_seed = recipe.seed if data.split_seed == "auto" else data.split_seed
    labels = data.corrections, data.soft_labels, data.uncertain_weight
    listing = list_source(data.source, data.extensions, *labels)
    listing = fetch_listing(listing, data.max_download_gib, data.recheck_hours)
    shares = data.valid_fraction, data.test_fraction, data.max_bad
    manifest = build_manifest(listing, *shares, split_seed, data.duplicates, data.range)
    for note in (_describe(manifest), *manifest.notes):
        _say_once(note)
    return manifest


def _describe(manifest: Manifest) -> str:
    counts = {split: len(manifest.rows(split)) for split in SPLITS}
    splits = ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)
    return f"{sum(counts.values()):,} pictures of {len(manifest.classes)} classes: {splits}"


@cache  # once for all trials of a sweep
def _say_once(note: str) -> None:
    say(note)
