"""Opens the pixels that a stage works on, which are saved among the files of its precompute run.

So they are available without the cache and the pictures: on another machine with the same tracking server.
"""

import shutil
from pathlib import Path

import torch

from pipeline import tracking
from pipeline.cache.markers import note_use
from pipeline.cache.store import find_damage
from pipeline.data.decode import Pixels
from pipeline.data.manifest import Manifest
from pipeline.data.nvjpeg import choose_decoder
from pipeline.data.remote.fetch import fetch_pictures
from pipeline.data.stored_pixels import StoredPixels, decoder_of, open_pixels
from pipeline.models.checkpoint import Checkpoint
from pipeline.recipe.picture_sections import Data
from pipeline.system.errors import UserError


def open_run_pixels(
    precompute_run: str, run_id: str, manifest: Manifest, checkpoint: Checkpoint, data: Data, device: torch.device
) -> Pixels:
    """`open_pixels` at the size of `checkpoint`, for the run `run_id`: from the cache, else from the files of
    `precompute_run`, else decoded from the pictures, which are fetched first if they are elsewhere. A store of up
    to `data.max_logged_gib` is added to these files."""
    name = f"pixels/{checkpoint.image_px}"

    def fetch(folder: Path) -> bool:
        if _fetch(precompute_run, name, folder):
            return True
        _fetch_pictures(manifest, data)
        return False

    decoder = choose_decoder(data.decoder, device)
    pixels = open_pixels(manifest, checkpoint.image_px, checkpoint.fit, data.max_store_gib, fetch, decoder)
    if data.decoder not in ("auto", decoder_of(pixels)):
        raise UserError(
            f"data.decoder is {decoder}, but the pictures in {manifest.source} are not on this machine, and run "
            f"{precompute_run} holds their pixels as decoded by {decoder_of(pixels)}; set data.decoder to auto."
        )
    if isinstance(pixels, StoredPixels):
        note_use(pixels.folder, run_id)
        if pixels.nbytes <= data.max_logged_gib * 2**30:
            _log(precompute_run, pixels.folder, name)
    else:
        _fetch_pictures(manifest, data)
    return pixels


def _fetch_pictures(manifest: Manifest, data: Data) -> None:
    """Bring pictures that have addresses to this machine; UserError if one of them is gone."""
    missing = fetch_pictures(manifest.root, manifest.addresses, data.max_download_gib) if manifest.addresses else {}
    if missing:
        path, reason = next(iter(missing.items()))
        raise UserError(
            f"{len(missing):,} pictures of the precompute run are gone, such as {manifest.addresses[path]}, which "
            f"{reason}; run precompute again."
        )


def _fetch(run_id: str, name: str, folder: Path) -> bool:
    """Fill `folder` from a run's files; gives whether they exist and are not damaged."""
    if not tracking.has_artifact(run_id, name):
        return False
    try:
        found = tracking.artifact(run_id, name)
    except UserError:
        return False
    if find_damage(found, contents=True):
        return False
    shutil.copytree(found, folder, dirs_exist_ok=True)
    return True


def _log(run_id: str, store: Path, name: str) -> None:
    if not tracking.has_artifact(run_id, name):
        tracking.log_folder(run_id, store, name)
