"""A network on disk: its weights as safetensors, and how it is built and trained as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.cache.store import DESCRIPTION, describe, find_damage
from pipeline.data.decode import Fit
from pipeline.data.deep import Ranges
from pipeline.models.body import build_body, load_weights
from pipeline.models.network import Network
from pipeline.models.weights import Weights
from pipeline.system.errors import UserError

WEIGHTS = "network.safetensors"
FACTS = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """How to build a network (`backbone`, `classes`, `hidden`, `dropout`), what it was trained on (`image_px`,
    `fit`, `grey`, and the `ranges` that deep pictures are scaled from), and how far: `epochs` and `steps` over all
    stages. `kept_epochs` are those after which it had these weights, if not after the last; of several they are the
    mean."""

    backbone: str
    classes: list[str]
    hidden: int
    dropout: float
    image_px: int
    fit: Fit
    grey: bool
    epochs: int = 0
    steps: int = 0
    ranges: Ranges = field(default_factory=dict)
    kept_epochs: list[int] = field(default_factory=list)


def build_network(checkpoint: Checkpoint, drop_path: float = 0.0) -> Network:
    """A network with fresh weights, channels last in memory; `drop_path` is that of `build_body`."""
    body = build_body(checkpoint.backbone, checkpoint.image_px, drop_path)
    network = Network(body, len(checkpoint.classes), checkpoint.hidden, checkpoint.dropout)
    return network.to(memory_format=torch.channels_last)


def start_network(checkpoint: Checkpoint, weights: Weights, seed: int) -> Network:
    """The network that training starts from: a body with these weights, and a head that follows from the seed."""
    torch.manual_seed(seed)
    network = build_network(checkpoint)
    load_weights(network.body, checkpoint.backbone, weights)
    return network


def save_checkpoint(network: Network, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the network's state and `checkpoint` into `folder`, with checksums that reveal damage."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / FACTS).write_text(json.dumps(asdict(checkpoint), indent=2, ensure_ascii=False), encoding="utf-8")
    describe(folder, {"backbone": checkpoint.backbone, "epochs": checkpoint.epochs, "steps": checkpoint.steps})


def load_checkpoint(folder: Path, image_px: int | None = None, drop_path: float = 0.0) -> tuple[Network, Checkpoint]:
    """The network that `save_checkpoint` wrote, on the CPU, and its `Checkpoint`.

    With `image_px` it is built for that size instead of its own; `drop_path` is that of `build_body`. UserError if the
    backbone cannot be, or if a file is damaged.
    """
    damage = find_damage(folder, contents=True) if (folder / DESCRIPTION).exists() else ""
    if damage:
        raise UserError(f"The checkpoint in {folder} is damaged ({damage}); run the stage that made it again.")
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    checkpoint = Checkpoint(**(facts | ({"image_px": image_px} if image_px else {})))
    network = build_network(checkpoint, drop_path)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError:
        if checkpoint.image_px == facts["image_px"]:
            raise
        raise UserError(
            f"model.backbone {checkpoint.backbone} is made for one image size and cannot go on at "
            f"{checkpoint.image_px} px; keep resize.image_px at {facts['image_px']}, or choose another backbone."
        ) from None
    return network, checkpoint
