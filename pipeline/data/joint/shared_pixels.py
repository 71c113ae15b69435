"""The same pixels, opened in each of several processes."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.data.decode import Decoder, Fit, Pixels
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.manifest import Manifest
from pipeline.data.stored_pixels import StoredPixels
from pipeline.ranks.folders import provide
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Stored:
    """The store in the leader's `folder`."""

    folder: Path

    def open(self) -> Pixels:
        """The store, or a copy of it; all processes call it."""
        return cast(Pixels, StoredPixels(provide(self.folder)))


@dataclass(frozen=True)
class Decoded:
    """Pictures that are decoded at each reading."""

    manifest: Manifest
    size_px: int
    fit: Fit
    decoder: Decoder

    def open(self) -> Pixels:
        """They lie on each machine; UserError if not on this one."""
        if not self.manifest.root.exists():
            raise UserError(
                f"The pictures are in {self.manifest.root}, which is not on {socket.gethostname()}; have them at the "
                "same place on every machine, or raise data.max_store_gib so that their pixels are stored and sent."
            )
        return cast(Pixels, DecodedPixels(self.manifest, self.size_px, self.fit, self.decoder))


@dataclass(frozen=True)
class Held:
    """An array."""

    array: Any

    def open(self) -> Pixels:
        """Itself."""
        return cast(Pixels, self.array)


Source = Stored | Decoded | Held


def source_of(pixels: Any) -> Source:
    """Where other processes find the same pixels."""
    if isinstance(pixels, StoredPixels):
        return Stored(pixels.folder)
    if isinstance(pixels, DecodedPixels):
        return Decoded(*pixels.made_from)
    return Held(pixels)
