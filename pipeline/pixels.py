"""The pixel store: every picture of a manifest decoded and made square once, memory-mapped."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from pipeline.console import track
from pipeline.decode import Fit, Pixels, decode_square
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.parallel import in_parallel
from pipeline.store import content_key, open_or_build

FILE = "pixels.npy"
# Goes into the store's key: to be counted up when `decode` starts to give other pixels.
DECODER_VERSION = 1


def open_pixels(manifest: Manifest, size_px: int, fit: Fit) -> Pixels:
    """All pictures of `manifest`, in its order, as a read-only memory map (images, size, size, channels) of uint8;
    one channel where all pictures are grey.

    Raises UserError if a picture is no longer what it was when the manifest was made.
    """
    grey = manifest.is_grey
    hashes = list(manifest.table["hash"])
    parts = {
        "pictures": content_key({"hashes": hashes}),
        "size_px": size_px,
        "fit": fit,
        "grey": grey,
        "decoder_version": DECODER_VERSION,
    }

    def build(folder: Path) -> None:
        shape = (len(hashes), size_px, size_px, 1 if grey else 3)
        pixels = open_memmap(folder / FILE, mode="w+", dtype=np.uint8, shape=shape)
        for row, square in enumerate(_decode_in_parallel(manifest.paths, hashes, size_px, fit, grey)):
            pixels[row] = square
        pixels.flush()

    folder, _ = open_or_build("pixels", parts, build)
    pixels: Pixels = np.load(folder / FILE, mmap_mode="r", allow_pickle=False)
    return pixels


def _decode_in_parallel(
    paths: Sequence[Path], hashes: Sequence[str], size_px: int, fit: Fit, grey: bool
) -> Iterator[Pixels]:
    def decode(path_and_hash: tuple[Path, str]) -> Pixels:
        path, content_hash = path_and_hash
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == content_hash:
                return decode_square(content, size_px, fit, grey)
            reason = "its content has changed"
        except (OSError, ValueError, SyntaxError) as error:
            reason = str(error)
        raise UserError(f"The picture {path} is not what it was ({reason}); run precompute again on what is there.")

    files = list(zip(paths, hashes, strict=True))
    return track(in_parallel(decode, files), f"decoding to {size_px} px", len(files), "images")
