"""What a CPU gains by ONNX Runtime where networks are frozen, and by keeping freed memory, in CPU seconds.

    python -m benchmarks.inference [--parts PART ...] [--backbone NAME] [--repeats N]

Everything is measured in turns in one process, so that other work disturbs all alike, on random pictures and weights.
Each ratio is the CPU seconds (user and system) of PyTorch with the C library as it is, over those of Thaw:

* precompute: activations of pictures of 128 px, in batches of 64, into a store;
* evaluate: plain predictions of all pictures of 256 px, and four views of a quarter of them;
* early_frozen: training steps at 256 px, in batches of 16, whose early layer group is frozen;
* unfrozen: training steps at 128 px, in batches of 32 (here memory alone counts);
* export: seconds that it takes to export, open and check a network, and from how many pixels on that pays.
"""

import argparse
import ctypes
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping

# As the commands do, before torch is loaded: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch

from pipeline.data.augment import view_matrices
from pipeline.evaluation.predict import predict
from pipeline.models.activations import StoreSettings, write_activations
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import Halves, cut_network
from pipeline.models.engine.frozen_part import training_module
from pipeline.models.engine.passes import Frozen, frozen_below, frozen_network
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import Network
from pipeline.system.memory import keep_freed_memory
from pipeline.training.optim import thaw
from pipeline.training.step import train_step

CPU = torch.device("cpu")
# Of more passes than it pays from.
MANY = 10**6
RATES = {"early": 1e-5, "late": 1e-4, "head": 1e-3}
# From malloc.h: what glibc's thresholds rise to by themselves.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MIB = -1, -3, 2**20
PLAIN, KEPT, ENGINE = "PyTorch", "memory kept", "ONNX Runtime"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    print(f"{given.backbone} on a CPU, {torch.get_num_threads()} threads")
    for name, value in measure(given.parts, given.backbone, given.repeats).items():
        print(f"{name}: {value:.2f}")


def measure(parts: list[str], backbone: str = "tf_efficientnet_lite0", repeats: int = 7) -> dict[str, float]:
    """The figures of these parts by name: first the ratios, then milliseconds a picture and what else there is."""
    ratios: dict[str, float] = {}
    others: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THAW_CACHE"] = folder
        for part in parts:
            milliseconds, more = PARTS[part](backbone, repeats)
            for name in [name for name in milliseconds if name != PLAIN]:
                ratios[f"{part}, {name}"] = milliseconds[PLAIN] / milliseconds[name]
            others |= {f"{part}, {name}, ms a picture": value for name, value in milliseconds.items()}
            others |= {f"{part}, {name}": value for name, value in more.items()}
    return ratios | others


Figures = tuple[Mapping[str, float], Mapping[str, float]]


def measure_precompute(backbone: str, repeats: int) -> Figures:
    """Part `precompute`."""
    facts, network, pixels = setting(backbone, 128, 128)
    own = cut_network(network, "head", 128)
    halves = frozen_below(network, facts, own, pixels, MANY)
    stored = np.empty((len(pixels), network.width), dtype=np.float16)
    settings = StoreSettings(64, "float16", CPU)

    def by(chosen: Halves) -> Callable[[], None]:
        return lambda: write_activations(stored, network, pixels, np.arange(len(pixels)), settings, halves=chosen)

    ways = {PLAIN: by(own), KEPT: by(own), ENGINE: by(halves)}
    return in_turns(ways, len(pixels), repeats), {}


def measure_evaluate(backbone: str, repeats: int) -> Figures:
    """Part `evaluate`; PyTorch computes all four views, as evaluate did before."""
    facts, network, pixels = setting(backbone, 256, 32)
    frozen = frozen_network(network, facts, pixels, MANY)
    rows, views = np.arange(len(pixels)), view_matrices("all", 1.0, 4)

    def by(network: Frozen, views: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            predict(network, pixels, rows, 64, CPU)
            predict(network, pixels, rows[: len(rows) // 4], 64, CPU, views)

        return run

    ways = {PLAIN: by(network, views), KEPT: by(network, views), ENGINE: by(frozen, views[1:])}
    return in_turns(ways, len(pixels), repeats), {}


def measure_early_frozen(backbone: str, repeats: int) -> Figures:
    """Part `early_frozen`."""
    return _measure_steps(backbone, 256, 16, "early", repeats)


def measure_unfrozen(backbone: str, repeats: int) -> Figures:
    """Part `unfrozen`."""
    return _measure_steps(backbone, 128, 32, "none", repeats)


def _measure_steps(backbone: str, image_px: int, batch_size: int, frozen, repeats: int) -> Figures:
    facts, network, pixels = setting(backbone, image_px, batch_size)
    optimizer = thaw(network, frozen, RATES, 0.01)
    module = training_module(network, facts, frozen, pixels, MANY)
    training_mode(network, "all")
    images, targets = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, torch.arange(batch_size) % 2

    def by(module: torch.nn.Module) -> Callable[[], None]:
        def run() -> None:
            for _ in range(3):
                train_step(module, optimizer, images, targets)

        return run

    ways = {PLAIN: by(network), KEPT: by(network)} | ({} if module is network else {ENGINE: by(module)})
    return in_turns(ways, 3 * batch_size, repeats), {}


def measure_export(backbone: str, repeats: int) -> Figures:
    """Part `export`."""
    facts, network, pixels = setting(backbone, 128, 32)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    seconds = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["THAW_CACHE"] = folder
            started = cpu_seconds()
            frozen = frozen_network(network, facts, pixels, MANY)
            seconds.append(cpu_seconds() - started)
    with torch.no_grad():
        ways = {KEPT: lambda: network.with_activations(images), ENGINE: lambda: frozen.with_activations(images)}
        milliseconds = in_turns(ways, len(images), repeats)
    saved_seconds = (milliseconds[KEPT] - milliseconds[ENGINE]) / 1000
    pays_from = statistics.median(seconds) / saved_seconds * 128**2 / 1e6
    return {PLAIN: milliseconds[KEPT], ENGINE: milliseconds[ENGINE]}, {
        "seconds": statistics.median(seconds), "pays from millions of pixels": pays_from
    }  # fmt: skip


def setting(backbone: str, image_px: int, count: int) -> tuple[Checkpoint, Network, np.ndarray]:
    """A network of random weights, how it is built, and pictures of noise."""
    torch.manual_seed(0)
    facts = Checkpoint(backbone, ["one", "other"], 512, 0.5, image_px, "crop", False)
    pixels = np.random.default_rng(0).integers(0, 256, (count, image_px, image_px, 3), dtype=np.uint8)
    return facts, build_network(facts).eval(), pixels


def in_turns(ways: Mapping[str, Callable[[], object]], pictures: int, repeats: int) -> dict[str, float]:
    """The median of the CPU milliseconds that each way takes for a picture; one round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            if name == PLAIN:
                give_memory_back()
            else:
                keep_freed_memory()
            started = cpu_seconds()
            way()
            if number:
                taken[name].append(1000 * (cpu_seconds() - started) / pictures)
    return {name: statistics.median(values) for name, values in taken.items()}


def give_memory_back() -> None:
    """Have glibc treat freed memory as it does by itself, and as Thaw did before."""
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
    library.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
    library.malloc_trim(0)


def cpu_seconds() -> float:
    """User and system seconds of this process so far."""
    times = os.times()
    return times.user + times.system


PARTS: dict[str, Callable[[str, int], Figures]] = {
    "precompute": measure_precompute,
    "evaluate": measure_evaluate,
    "early_frozen": measure_early_frozen,
    "unfrozen": measure_unfrozen,
    "export": measure_export,
}

if __name__ == "__main__":
    main()
