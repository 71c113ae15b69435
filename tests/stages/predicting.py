"""What a network that a stage saved makes of the pictures, by their files and without the library's batches."""

import numpy as np
import torch
from PIL import Image

from pipeline.models.checkpoint import load_checkpoint
from tests.stages.chains import Chain


def squished_pictures(chain: Chain, size_px: int) -> np.ndarray:
    """The pictures (pictures, size_px, size_px, 3), resized without regard to their shape, as the chain's recipe
    asks for."""
    paths = [chain.manifest.root / path for path in chain.manifest.table["path"]]
    squares = [Image.open(path).resize((size_px, size_px), Image.Resampling.BILINEAR) for path in paths]
    return np.stack([np.asarray(square) for square in squares])


@torch.no_grad()
def probabilities(chain: Chain, name: str, split: str) -> np.ndarray:
    """(pictures of the split, classes) by the network that the run of this name saved."""
    network, checkpoint = load_checkpoint(chain[name].files / "checkpoint")
    images = torch.from_numpy(squished_pictures(chain, checkpoint.image_px)[chain.manifest.rows(split)])
    return network.eval()(images.permute(0, 3, 1, 2) / 255).double().softmax(1).numpy()


def loss_and_accuracy(chain: Chain, name: str, split: str) -> tuple[float, float]:
    """The mean cross-entropy of that network, and its share of right answers."""
    found, targets = probabilities(chain, name, split), chain.manifest.targets[chain.manifest.rows(split)]
    return -np.log(found[np.arange(len(targets)), targets]).mean(), (found.argmax(1) == targets).mean()
