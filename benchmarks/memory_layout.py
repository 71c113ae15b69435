"""What a GPU's first batch of a shape costs, and each one after it, as a network lies in memory.

    python -m benchmarks.memory_layout [--backbones NAME NAME]

For each backbone, first with the width last in memory and then with the channels last: seconds of the first pass and
milliseconds of later ones, in bfloat16; and the same of training steps, captured as they are in trainings, by their
pixels and batch. Random pictures and weights. Takes minutes, of which cuDNN compiles for most.
"""

import argparse
import time
from collections.abc import Callable

import torch

from pipeline.models.body import build_body
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import Network
from pipeline.system.device import choose_device, mixed_precision
from pipeline.training.optim import thaw
from pipeline.training.schedule import group_rates
from pipeline.training.step import EAGER_STEPS, steps_of

BACKBONES = ("tf_efficientnet_lite0", "mobilenetv3_small_100", "resnet50")
CLASSES, PASS_PX, PASS_PICTURES = 2, 224, 256
STEPS = ((128, 32), (224, 32), (224, 128))  # pixels, pictures
TIMED = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    given = parser.parse_args()
    device = choose_device("cuda")
    torch.zeros(1, device=device)
    for backbone in given.backbones:
        for is_channels_last in (False, True):
            network = Network(build_body(backbone, PASS_PX), CLASSES, 512, 0.5).to(device)
            network.lay_out(is_channels_last)
            print(f"{backbone}, {'channels' if is_channels_last else 'width'} last")
            print(f"  pass of {PASS_PICTURES} at {PASS_PX} px: {_passes(network, device)}", flush=True)
            for image_px, pictures in STEPS:
                print(
                    f"  step on {pictures} at {image_px} px: {_steps(network, image_px, pictures, device)}", flush=True
                )


def _passes(network: Network, device: torch.device) -> str:
    images = torch.rand(PASS_PICTURES, 3, PASS_PX, PASS_PX, device=device)

    def forward() -> None:
        with torch.no_grad(), mixed_precision(device):
            network(images)

    network.eval()
    return _told(forward)


def _steps(network: Network, image_px: int, pictures: int, device: torch.device) -> str:
    images = torch.rand(pictures, 3, image_px, image_px, device=device)
    targets = torch.zeros(pictures, dtype=torch.int64, device=device)
    step = steps_of(network, thaw(network, "none", group_rates(1e-4, 10), 0.01))
    training_mode(network, "all")
    return _told(lambda: step(images, targets, None))


def _told(work: Callable[[], object]) -> str:
    first = _seconds(work)
    for _ in range(EAGER_STEPS + 1):
        work()
    later = _seconds(lambda: [work() for _ in range(TIMED)]) / TIMED
    return f"the first {first:.2f} s, later ones {1000 * later:.1f} ms"


def _seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
