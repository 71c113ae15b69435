"""What training many heads at once saves against training them one after another.

    python -m benchmarks.many_heads                              # 256 linear heads
    python -m benchmarks.many_heads --hidden 32,512 --heads 32   # heads with a hidden layer

On random activations as many and as wide as those of the packaged pictures, batches of 32, 5 epochs. Each kind of head
is trained all at once by `train_heads`, and some of the same heads one after another by `fit`, whose time is taken for
all. Both in turn, within one run; prints the medians and their ratio. Two minutes on two cores.
"""

import argparse
import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

# As the commands do, before torch is loaded: see stages/__main__.py.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch

from pipeline.data.batches import Batches
from pipeline.data.loader import Split
from pipeline.models.activations import activation_batches
from pipeline.models.network import build_head
from pipeline.system.device import choose_device
from pipeline.training.fit import Phase, fit
from pipeline.training.heads.many_heads import HeadSetting, train_heads
from pipeline.training.heads.stacked_heads import HeadShape
from pipeline.training.optim import head_optimizer

TRAIN, VALID, WIDTH, CLASSES, BATCH_SIZE, EPOCHS = 1575, 393, 2560, 2, 32, 5
SEEDS, SAMPLE = 4, 8
DROPOUTS = {"no dropout": [0.0], "one dropout": [0.5], "four dropouts": [0.0, 0.25, 0.5, 0.75]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", default="0")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = choose_device(given.device)
    train, valid = random_batches(device)
    print(f"{given.heads} heads, {SEEDS} seeds, {EPOCHS} epochs of {len(train)} batches, on {describe(device)}")
    for hidden in map(int, given.hidden.split(",")):
        for name, dropouts in DROPOUTS.items():
            settings = draw(given.heads, dropouts)
            compare(f"hidden {hidden}, {name}", settings, hidden, train, valid, given.repeats)


def compare(
    name: str, settings: Sequence[HeadSetting], hidden: int, train: Batches, valid: Batches, repeats: int
) -> None:
    """Print the seconds of both ways, and how many times shorter the one is."""
    chosen = np.random.default_rng(1).choice(len(settings), min(SAMPLE, len(settings)), replace=False)
    sample, shape = [settings[index] for index in chosen], HeadShape(WIDTH, CLASSES, hidden)
    quiet = contextlib.redirect_stdout(io.StringIO())  # progress
    with quiet:
        one_by_one(sample[:1], hidden, train, valid, epochs=1)  # what is set up once is not counted
        train_heads([replace(one, stored_epochs=1) for one in settings[:SEEDS]], shape, train, valid)
    apart, together = [], []
    for _ in range(repeats):
        with quiet:
            apart.append(scaled(len(settings) / len(sample), lambda: one_by_one(sample, hidden, train, valid, EPOCHS)))
            together.append(scaled(1, lambda: train_heads(settings, shape, train, valid)))
    wall, of_cpu = (
        statistics.median(one[kind] / all_[kind] for one, all_ in zip(apart, together, strict=True)) for kind in (0, 1)
    )
    alone, at_once = (statistics.median(seconds for seconds, _ in times) for times in (apart, together))
    print(
        f"{name}: one after another {alone:.1f} s (from {len(sample)} of them), at once {at_once:.2f} s, "
        f"{len(settings) / at_once:,.0f} heads/s: {wall:.1f} times as fast ({of_cpu:.1f} times by the CPU's time)",
        flush=True,
    )


def scaled(times: float, work: Callable[[], object]) -> tuple[float, float]:
    """The seconds, and the CPU's seconds, of `work`, times `times`; until the device has finished."""
    started = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return times * (time.perf_counter() - started[0]), times * (time.process_time() - started[1])


def one_by_one(settings: Sequence[HeadSetting], hidden: int, train: Batches, valid: Batches, epochs: int) -> None:
    """Train these heads by themselves, as train_head trains one."""
    for one in settings:
        torch.manual_seed(one.seed)
        head = build_head(WIDTH, CLASSES, hidden, one.dropout).to(train.device)
        optimizer = head_optimizer(head, one.lr, one.weight_decay)
        of_head = replace(train, seed=one.seed)
        for _ in fit(Phase(head, optimizer, of_head, valid, [epochs], label_smoothing=one.label_smoothing)):
            pass


def draw(heads: int, dropouts: Sequence[float]) -> list[HeadSetting]:
    """Settings at random, each with every seed."""
    random = np.random.default_rng(0)
    drawn = []
    for index in range(heads // SEEDS):
        lr, decay = (float(10 ** random.uniform(*ends)) for ends in ((-4, -1), (-4, -0.5)))
        smoothing = float(random.choice([0.0, 0.1]))
        dropout = dropouts[index % len(dropouts)]
        drawn += [HeadSetting(lr, decay, dropout, smoothing, EPOCHS, seed) for seed in range(SEEDS)]
    return drawn


def random_batches(device: torch.device) -> tuple[Batches, Batches]:
    """Activations in float16, as they are stored, with something of the class in them."""
    random = np.random.default_rng(0)
    targets = random.integers(0, CLASSES, TRAIN + VALID)
    activations = random.random((TRAIN + VALID, WIDTH), dtype=np.float32) + 0.2 * np.eye(CLASSES, WIDTH)[targets]
    split = Split(np.arange(TRAIN), np.arange(TRAIN, TRAIN + VALID), targets)
    return activation_batches(activations.astype(np.float16), split, BATCH_SIZE, device, seed=0)


def describe(device: torch.device) -> str:
    """The device, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


if __name__ == "__main__":
    main()
