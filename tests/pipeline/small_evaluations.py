"""An evaluation of a small network on a few pictures, for the tests of what is written about it."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.data.augment import view_matrices
from pipeline.data.manifest import Manifest
from pipeline.evaluation.evaluation import Evaluation, evaluate
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.network import Network

CPU = torch.device("cpu")
ODD = ["<b>hen</b>", "$x_1$ & a name that goes on and on and on", "Größe", "__init__", "猫"]


def small_network(classes: list[str], backbone: str = "test_resnet", image_px: int = 32) -> Network:
    torch.manual_seed(0)
    network = build_network(Checkpoint(backbone, classes, 0, 0.0, image_px, "crop", False))
    torch.nn.init.normal_(network.head[-1].weight, std=0.5)
    return network


def small_evaluation(
    network: Network, classes: list[str], splits: list[str], image_px: int = 32
) -> tuple[Evaluation, np.ndarray]:
    """The evaluation, and the pixels of the pictures that it is of."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (len(splits), image_px, image_px, 3), dtype=np.uint8)
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(len(splits))],
            "label": [classes[row % len(classes)] for row in range(len(splits))],
            "split": splits,
            "hash": [f"{row:064x}" for row in range(len(splits))],
            "width_px": image_px,
            "height_px": image_px,
            "mode": "RGB",
        }
    )
    manifest = Manifest("farm", Path("/nowhere"), classes, table, pd.DataFrame(columns=["path", "reason"]))
    stored = draw.normal(size=(len(splits), 16))
    stored[splits.index("valid")] = stored[splits.index("train")]
    losses = {"train_loss": [0.7, 0.6], "valid_loss": [0.7, 0.65], "valid_accuracy": [0.5, 0.6]}
    epochs = pd.DataFrame({"run_id": "r", "stage": "resize", "phase": "", "rate": 0.01, "epoch": [1, 2], **losses})
    evaluation = evaluate(
        network,
        manifest,
        pixels,
        view_matrices("sideways", 0.9, 3),
        4,
        CPU,
        positive="",
        stored=stored,
        duplicate_similarity=0.97,
        epochs=epochs,
        fine_tune_cycles=2,
        head_dropout=0.5,
        test_fraction=0.25,
        seed=0,
    )
    return evaluation, pixels
