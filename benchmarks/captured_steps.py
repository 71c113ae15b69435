"""What a training on a GPU gains by replaying its step as a CUDA graph.

    python -m benchmarks.captured_steps [--repeats N] [--json FILE]

For each of NETWORKS the rate of an epoch of `fit`, with all augmentation on, from a pixel store, against that of steps
on one batch in memory whose operations are launched one by one, as all steps were before. Random pictures and weights;
ratios are medians of repeats that are interleaved in one process.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.side_by_side.results import Comparison
from benchmarks.throughput import CLASSES, HOW, VALID, one_batch, random_store, report, split_of
from pipeline.data.loader import pixel_batches
from pipeline.models.body import build_body
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import Network
from pipeline.system.device import choose_device
from pipeline.training.fit import Phase, fit
from pipeline.training.optim import thaw
from pipeline.training.schedule import group_rates
from pipeline.training.step import train_step

# Backbone, pixels, batch size, and by how many times an epoch should be faster.
NETWORKS = (
    ("tf_efficientnet_lite0", 128, 32, 5.0),
    ("tf_efficientnet_lite0", 224, 32, 2.5),
    ("resnet50", 224, 32, 2.2),
    ("resnet50", 224, 128, 1.0),
)
STEPS = 40  # batches an epoch
GROUP = "A training epoch against steps launched one by one"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="a file to write the ratios to")
    given = parser.parse_args()
    device = choose_device("cuda")
    found: list[Comparison] = []
    for backbone, image_px, batch_size, target in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["THAW_CACHE"] = folder
            measured = measure(backbone, image_px, batch_size, given.repeats, device)
        of = f"{backbone}, {image_px} px, batches of {batch_size}"
        found.append(replace(measured, group=GROUP, of=of, target=target))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in found]), encoding="utf-8")


def measure(backbone: str, image_px: int, batch_size: int, repeats: int, device: torch.device) -> Comparison:
    """An epoch of a training against as many eager steps."""
    torch.manual_seed(0)
    pixels = random_store(Path(os.environ["THAW_CACHE"]), STEPS * batch_size + VALID, image_px)
    networks = [Network(build_body(backbone, image_px), CLASSES, 512, 0.5).to(device) for _ in range(2)]
    optimizer, eager_optimizer = (thaw(one, "none", group_rates(1e-4, 10), 0.01) for one in networks)
    train, valid = pixel_batches(pixels, split_of(pixels), HOW, batch_size, device, 0)
    images, targets = one_batch(pixels, batch_size, device)

    def eager() -> None:
        training_mode(networks[1])
        for _ in range(len(train)):
            train_step(networks[1], eager_optimizer, images, targets)

    epochs = fit(Phase(networks[0], optimizer, train, valid, [repeats + 1]))
    what = f"{backbone}, {image_px} px, batches of {batch_size}: an epoch"
    count = len(train) * batch_size
    (found,) = report(what, "eager steps", count, eager, lambda _: next(epochs).seconds, repeats, device)
    return replace(found, what="an epoch")


if __name__ == "__main__":
    main()
