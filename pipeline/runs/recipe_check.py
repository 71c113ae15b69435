"""Checks, before the first stage works, all of a recipe that hangs on the machine, the backbone and the servers.

What hangs on the recipe alone, or on the names of the pictures, is checked before torch is loaded: see `recipe/` and
stages/__main__.py.
"""

from pipeline import tracking
from pipeline.data.nvjpeg import choose_decoder
from pipeline.models.network_check import check_network
from pipeline.recipe.schema import Recipe
from pipeline.system.device import choose_device


def check_recipe(recipe: Recipe) -> None:
    """UserError if the device, the decoder, the backbone at both sizes, the cut, or the run to reuse is not there."""
    choose_decoder(recipe.data.decoder, choose_device(recipe.device))
    sizes_px = recipe.precompute.image_px, recipe.resize.image_px
    check_network(recipe.model.backbone, sizes_px, recipe.precompute.cut)
    if recipe.reuse not in ("auto", "never"):
        tracking.run_of(recipe.reuse)
