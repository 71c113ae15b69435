"""A network on disk: its weights as safetensors, and how it is built and trained as JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.cache.store import describe
from pipeline.models.body import build_body, load_weights
from pipeline.models.facts import FACTS, read_facts
from pipeline.models.facts import Checkpoint as Checkpoint  # its home, for all that loads networks
from pipeline.models.network import Network
from pipeline.models.weights import Weights
from pipeline.system.errors import UserError

WEIGHTS = "network.safetensors"


def build_network(checkpoint: Checkpoint, drop_path: float = 0.0) -> Network:
    """A network with fresh weights; `drop_path` is that of `build_body`."""
    body = build_body(checkpoint.backbone, checkpoint.image_px, drop_path)
    return Network(body, len(checkpoint.classes), checkpoint.hidden, checkpoint.dropout)


def start_network(checkpoint: Checkpoint, weights: Weights, seed: int) -> Network:
    """The network that training starts from: a body with these weights, and a head that follows from the seed."""
    torch.manual_seed(seed)
    network = build_network(checkpoint)
    load_weights(network.body, checkpoint.backbone, weights)
    return network


def save_checkpoint(network: Network, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the network's state and `checkpoint` into `folder`, with checksums that reveal damage."""
    save_state(network.state_dict(), checkpoint, folder)


def save_state(state: Mapping[str, Tensor], checkpoint: Checkpoint, folder: Path) -> None:
    """The same for a network of which there is the state alone."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(state, folder / WEIGHTS)
    (folder / FACTS).write_text(json.dumps(asdict(checkpoint), indent=2, ensure_ascii=False), encoding="utf-8")
    describe(folder, {"backbone": checkpoint.backbone, "epochs": checkpoint.epochs, "steps": checkpoint.steps})


def load_checkpoint(folder: Path, image_px: int | None = None, drop_path: float = 0.0) -> tuple[Network, Checkpoint]:
    """The network that `save_checkpoint` wrote, on the CPU, and its `Checkpoint`.

    With `image_px` it is built for that size instead of its own; `drop_path` is that of `build_body`. UserError if the
    backbone cannot be, or if a file is damaged.
    """
    facts = read_facts(folder)
    checkpoint = replace(facts, image_px=image_px or facts.image_px)
    network = build_network(checkpoint, drop_path)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError:
        if checkpoint.image_px == facts.image_px:
            raise
        raise UserError(
            f"model.backbone {checkpoint.backbone} is made for one image size and cannot go on at "
            f"{checkpoint.image_px} px; keep resize.image_px at {facts.image_px}, or choose another backbone."
        ) from None
    return network, checkpoint
