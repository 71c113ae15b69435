"""Checks, before the first stage works, all of a recipe that hangs on the machine, the backbone and the servers.

What hangs on the recipe alone, or on the names of the pictures, is checked before torch is loaded: see `recipe/` and
stages/__main__.py.
"""

from pathlib import Path

from pipeline import tracking
from pipeline.cache.hashing import library_versions
from pipeline.cache.store import open_or_build
from pipeline.recipe.schema import Recipe, resize_steps
from pipeline.runs.fingerprint import source_digest
from pipeline.system.later import later


def check_recipe(recipe: Recipe) -> None:
    """UserError if the device, the decoder, the backbone at both sizes, the cut, or the run to reuse is not there.
    Where nothing can be compiled, a sentence says so."""
    check_machine(recipe)
    sizes_px = recipe.precompute.image_px, *(step.image_px for step in resize_steps(recipe))
    drop_path = max(stage.drop_path for stage in (recipe.fine_tune, *resize_steps(recipe)))
    _check_network(recipe.model.backbone, sizes_px, recipe.precompute.cut, drop_path)
    if recipe.reuse not in ("auto", "never"):
        tracking.run_of(recipe.reuse)


def check_machine(recipe: Recipe) -> None:
    """UserError if the device or the decoder that the recipe asks for is not there; what it leaves to the machine is
    not looked at, so that torch is not loaded for it."""
    if recipe.compile or recipe.device == "cuda" or recipe.data.decoder == "nvjpeg":
        later("pipeline.runs.work.materials.check_device")(recipe)


def _check_network(*network: object) -> None:
    """`check_network`, once on this machine: what a backbone can do depends on nothing else."""

    def check(folder: Path) -> None:
        later("pipeline.models.network_check.check_network")(*network)

    depends_on = {"versions": library_versions("torch", "timm"), "code": source_digest("pipeline.models.network_check")}
    open_or_build("checks", {"network": network} | depends_on, check)
