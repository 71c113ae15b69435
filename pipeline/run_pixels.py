"""The pixels that a stage works on, kept among the files of the precompute run that they belong to.

So they can be had where neither the cache nor the pictures are: on another machine with the same tracking server.
"""

import shutil
from pathlib import Path

from pipeline.decode import Decoder, Fit, Pixels
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.pixels import StoredPixels, open_pixels
from pipeline.sidecars import note_use
from pipeline.store import find_damage


def open_run_pixels(
    precompute_run: str,
    run_id: str,
    max_store_gib: float,
    max_logged_gib: float,
    manifest: Manifest,
    size_px: int,
    fit: Fit,
    decoder: Decoder = "pillow",
) -> Pixels:
    """`open_pixels`, for the run `run_id`: from the cache; where they are not there, from the files of
    `precompute_run`; else decoded from the pictures. A store of up to `max_logged_gib` is put among these files."""
    place = f"pixels/{size_px}"

    def fetch(folder: Path) -> bool:
        return _fetch(precompute_run, place, folder)

    pixels = open_pixels(manifest, size_px, fit, max_store_gib, fetch, decoder)
    if isinstance(pixels, StoredPixels):
        note_use(pixels.folder, run_id)
        if pixels.nbytes <= max_logged_gib * 2**30:
            _log(precompute_run, pixels.folder, place)
    return pixels


def _fetch(run_id: str, place: str, folder: Path) -> bool:
    """Fill `folder` from a run's files; whether there were any, and sound ones."""
    from pipeline import tracking

    if not tracking.has_artifact(run_id, place):
        return False
    try:
        found = tracking.artifact(run_id, place)
    except UserError:
        return False
    if find_damage(found, contents=True):
        return False
    shutil.copytree(found, folder, dirs_exist_ok=True)
    return True


def _log(run_id: str, store: Path, place: str) -> None:
    from pipeline import tracking

    if not tracking.has_artifact(run_id, place):
        tracking.log_folder(run_id, store, place)
