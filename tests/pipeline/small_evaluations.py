"""An evaluation of a small network on a few pictures, for the tests of reports."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.data.manifest import Manifest
from pipeline.evaluation.diagnosis import Verdict
from pipeline.evaluation.ensembles.members import Member
from pipeline.evaluation.evaluation import Evaluation, evaluate
from pipeline.evaluation.predict import predictions_table
from pipeline.evaluation.predictions import Predictions
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.network import Network
from pipeline.recipe.picture_sections import Augment
from pipeline.recipe.schema import Evaluate, Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(augment=Augment(flip="sideways", crop=0.9), evaluate=Evaluate(batch_size=4, tta_views=3))
ODD = ["<b>hen</b>", "$x_1$ & a name that goes on and on and on", "Größe", "__init__", "猫"]


def small_network(classes: list[str], backbone: str = "test_resnet", image_px: int = 32) -> Network:
    torch.manual_seed(0)
    network = build_network(Checkpoint(backbone, classes, 0, 0.0, image_px, "crop", False))
    torch.nn.init.normal_(network.head[-1].weight, std=0.5)
    return network


def small_evaluation(
    network: Network, classes: list[str], splits: list[str], image_px: int = 32, out_of_fold: np.ndarray | None = None
) -> tuple[Evaluation, np.ndarray]:
    """The evaluation, and the pixels of its pictures. `out_of_fold` are of the training pictures."""
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
    told = {"run_id": "r", "stage": "resize", "phase": "", "rate": 0.01, "rate_key": "resize.lr"}
    epochs = pd.DataFrame(told | {"epoch": [1, 2], **losses})
    members = [Member("resize", network, pixels)]
    return evaluate(RECIPE, members, manifest, stored, epochs, CPU, out_of_fold), pixels


def cats_and_dogs(
    metrics: dict[str, float], split: str = "test", temperature: float = 1.0, verdict: str = "Fine."
) -> Evaluation:
    """An evaluation without a network: of three cats two are found, and two of four dogs are taken for cats."""
    rows = pd.DataFrame({"path": "a.png", "hash": "a", "split": split, "label": ["cat"] * 3 + ["dog"] * 4})
    of_cat = np.array([0.9, 0.8, 0.2, 0.7, 0.6, 0.3, 0.1])
    probabilities = np.stack([of_cat, 1 - of_cat], axis=1)
    table = predictions_table(rows, ["cat", "dog"], probabilities, probabilities)
    predictions = Predictions(split, ["cat", "dog"], table, temperature, "cat")
    nothing = pd.DataFrame()
    activations = np.zeros((0, 4), np.float16)
    return Evaluation(
        name="pets",
        predictions=predictions,
        metrics=metrics,
        verdict=Verdict("good", verdict),
        verdicts=[],
        label_errors=nothing,
        near_duplicates=nothing,
        epochs=nothing,
        valid_activations=activations,
        kept_activations=activations,
        kept_rows=np.zeros(0, np.int64),
        seed=0,
    )
