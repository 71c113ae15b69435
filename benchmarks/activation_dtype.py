"""What storing activations in float16 costs and saves, on the packaged pictures.

    python -m benchmarks.activation_dtype

Prints, for float16 and float32: the store's size, the largest difference of a trained head's logits from those of the
whole network, and the seconds of an epoch of the head. A few minutes on two cores.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.data.loader import training_split
from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import open_pixels
from pipeline.models.activations import (
    StoreSettings,
    activation_batches,
    activation_key_parts,
    open_activations,
    read_activations,
)
from pipeline.models.body import load_weights
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.weights import find_weights
from pipeline.training.fit import Phase, fit
from pipeline.training.optim import head_optimizer

BACKBONE, IMAGE_PX, EPOCHS = "tf_efficientnet_lite0", 128, 5
CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    manifest = build_manifest(list_source("elpv", []), 0.15, 0.25, 0.01, seed=0)
    pixels = open_pixels(manifest, IMAGE_PX, "crop")
    torch.manual_seed(0)
    checkpoint = Checkpoint(BACKBONE, manifest.classes, 512, 0.5, IMAGE_PX, "crop", manifest.is_grey)
    network = build_network(checkpoint)
    weights = find_weights(BACKBONE, "auto", 0)
    load_weights(network.body, BACKBONE, weights)
    split = training_split(manifest, 1.0, 0)
    hashes = list(manifest.table["hash"])
    for dtype in ("float32", "float16"):
        key_parts = activation_key_parts(hashes, checkpoint, weights.identity, dtype)
        stored = read_activations(open_activations(network, pixels, key_parts, StoreSettings(64, dtype, CPU)))
        torch.manual_seed(0)
        network.reset_head(512, 0.5)
        optimizer = head_optimizer(network.head, 1e-3, 0.01)
        started = time.perf_counter()
        *_, last = fit(Phase(network.head, optimizer, *activation_batches(stored, split, 32, CPU, 0), [EPOCHS]))
        seconds = (time.perf_counter() - started) / EPOCHS
        difference = _largest_difference(network, pixels, stored, split.valid)
        print(
            f"{dtype}: {stored.nbytes / 2**20:.1f} MiB, logits differ by {difference:.1e} at most, "
            f"valid accuracy {last.valid_accuracy:.4f}, {seconds:.2f} s an epoch"
        )


@torch.no_grad()
def _largest_difference(network, pixels, stored, rows) -> float:
    """Between the head's logits on stored activations and the whole network's on the pictures themselves."""
    network.eval()
    images = torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2).float() / 255
    whole = torch.cat([network(chunk) for chunk in images.split(64)])
    from_store = network.head(torch.from_numpy(stored[rows].astype(np.float32)))
    return float((whole - from_store).abs().max())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THAW_CACHE"] = str(Path(folder))
        main()
