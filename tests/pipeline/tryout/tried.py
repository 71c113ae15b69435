"""A small model, and a few of the pictures that it was trained on."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipeline.data.batches import fetch_pixels
from pipeline.evaluation.neighbours import load_neighbours, save_neighbours
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.classifier import Classifier, Member
from pipeline.tryout.answers import TriedModel

CPU = torch.device("cpu")
CLASSES = ["cat", "dog", '<b id="bold">hen</b>']
SIZE_PX = 32


def pictures() -> np.ndarray:
    """Eight pictures, plain enough to survive a resize."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (8, 4, 4, 3), dtype=np.uint8).repeat(SIZE_PX // 4, 1).repeat(SIZE_PX // 4, 2)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def small_model(folder: Path | None = None, backbone: str = "test_resnet") -> TriedModel:
    """The model, which keeps these pictures as cats, but for the last two, in `folder`, if one is given."""
    facts = Checkpoint(backbone, CLASSES, 0, 0.0, SIZE_PX, "crop", False, ranges={"16": [0, 4095]})
    torch.manual_seed(0)
    network = build_network(facts).eval()
    torch.nn.init.normal_(network.head[-1].weight, std=2)
    kept = None
    if folder is not None:
        table = pd.DataFrame({"path": [f"{row}.png" for row in range(8)], "label": ["cat"] * 6 + ["dog"] * 2})
        with torch.no_grad():
            seen = network.activations(fetch_pixels(pictures(), CPU)(np.arange(8))).half().numpy()
        save_neighbours(table, pictures(), seen, seen[:2], 8, folder)
        kept = load_neighbours(folder)
    return TriedModel(Classifier((Member(network, facts),), 1.5, CPU), network, kept)
