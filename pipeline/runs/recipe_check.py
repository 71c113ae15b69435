"""Checks, before the first stage works, all of a recipe that hangs on the machine, the backbone and the servers.

What hangs on the recipe alone, or on the names of the pictures, is checked before torch is loaded: see `recipe/` and
stages/__main__.py.
"""

from functools import cache

from pipeline import tracking
from pipeline.data.nvjpeg import choose_decoder
from pipeline.models.network_check import check_network
from pipeline.recipe.schema import Recipe, resize_steps
from pipeline.system.console import warn
from pipeline.system.device import choose_device
from pipeline.system.machine import missing_compiler


def check_recipe(recipe: Recipe) -> None:
    """UserError if the device, the decoder, the backbone at both sizes, the cut, or the run to reuse is not there.
    Where nothing can be compiled, a sentence says so."""
    device = choose_device(recipe.device)
    choose_decoder(recipe.data.decoder, device)
    if recipe.compile and (missing := missing_compiler(device.type)):
        _report_missing(missing)
    sizes_px = recipe.precompute.image_px, *(step.image_px for step in resize_steps(recipe))
    drop_path = max(stage.drop_path for stage in (recipe.fine_tune, *resize_steps(recipe)))
    check_network(recipe.model.backbone, sizes_px, recipe.precompute.cut, drop_path)
    if recipe.reuse not in ("auto", "never"):
        tracking.run_of(recipe.reuse)


@cache  # once for all trials of a sweep
def _report_missing(compiler: str) -> None:
    warn(f"compile is true, but {compiler} is missing here, so that nothing is compiled; install it.")
