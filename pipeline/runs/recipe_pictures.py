"""What a recipe starts from: its pictures, listed, fetched, inspected, corrected and split, and the body's weights."""

from dataclasses import dataclass
from functools import cache

from pipeline import tracking
from pipeline.data.manifest import Manifest, build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.remote.fetch import fetch_listing
from pipeline.data.splits import SPLITS
from pipeline.models.weights import Weights, find_weights
from pipeline.recipe.schema import Recipe
from pipeline.runs.recipe_check import check_machine
from pipeline.system.console import say
from pipeline.system.later import later


@dataclass(frozen=True)
class Inputs:
    """The pictures and the weights."""

    manifest: Manifest
    weights: Weights


def gather_inputs(recipe: Recipe) -> Inputs:
    """What the recipe starts from; UserError if it cannot be had."""
    tracking.connect()  # a server that is away is reported before pictures are opened
    check_machine(recipe)  # and so is a device that is not there, or a hub out of reach
    model = recipe.model
    weights = find_weights(model.backbone, model.weights, recipe.seed)
    if weights.kind == "hub":
        weights = later("pipeline.models.hub.fetch_weights")(model.backbone, weights)
    return Inputs(list_pictures(recipe), weights)


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
