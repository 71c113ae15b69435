"""Who computes a frozen pass: ONNX Runtime, where it is faster and agrees with the network, or else the network."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.hashing import library_versions
from pipeline.data.batches import fetch_pixels
from pipeline.data.decode import Pixels
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.cut import Halves
from pipeline.models.engine.graph import LOGITS, Part, below, open_graph, weights_for, whole
from pipeline.models.engine.session import Session, pictures_at_once, start_session
from pipeline.models.engine.spread import Spread, spread
from pipeline.models.network import Network
from pipeline.ranks.team import processes
from pipeline.system.console import say
from pipeline.system.errors import UserError

# With fewer pixels in all (366 pictures of 128 px), exporting and checking a network costs more than it saves. On two
# cores it pays from 2.2 million on for tf_efficientnet_lite0, 3 for resnet18 and convnext_atto, 4.4 for
# regnety_002, 5.8 for mobilenetv3_small_100 and 10 for vit_tiny_patch16_224, by CPU seconds (benchmarks/inference.py).
LEAST_PIXELS = 6_000_000
# The largest difference to the network's own logits; that of activations is relative to the largest one.
TOLERANCE = 1e-3
CHECKED_PICTURES = 4


@dataclass(frozen=True)
class Engine:
    """A network with fixed weights, in eval mode and without gradients, computed by ONNX Runtime."""

    session: Session

    def eval(self) -> "Engine":
        """Itself: it has no other mode."""
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """The logits."""
        return self.session.run(images)[1]

    def with_activations(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The head's input, and the logits."""
        activations, logits = self.session.run(images)
        return activations, logits


@dataclass(frozen=True)
class SharedPass:
    """A network with fixed weights that helpers have too; `own` computes this process's part."""

    own: Network | Engine
    spread: Spread

    def eval(self) -> "SharedPass":
        """Itself, in eval mode."""
        self.own.eval()
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.own(images)
        return logits

    def with_activations(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The head's input, and the logits."""
        return self.own.with_activations(images)


Frozen: TypeAlias = Network | Engine | SharedPass


def frozen_network(network: Network, checkpoint: Checkpoint, pixels: Pixels, passes: int) -> Frozen:
    """What computes `passes` of pictures of `pixels` through the network of `checkpoint`: the network itself, in eval
    mode, unless ONNX Runtime is faster; a sentence says so where it cannot be used or does not agree. Helpers compute
    their part of the pictures, if there are any."""
    session = _open(whole(network), checkpoint, pixels, passes)
    own = network if session is None else Engine(session)
    return SharedPass(own, spread(network, checkpoint, pixels, passes)) if processes() > 1 else own


def frozen_below(network: Network, checkpoint: Checkpoint, halves: Halves, pixels: Pixels, passes: int) -> Halves:
    """These `halves` of the network, the lower one computed in the same way, by helpers too if there are any."""
    session = _open(below(network, halves), checkpoint, pixels, passes)
    if processes() > 1:
        halves = replace(halves, work=spread(network, checkpoint, pixels, passes, halves.cut))
    if session is None:
        return halves
    versions = library_versions("onnx", "onnxruntime")
    return replace(halves, below=lambda images: session.run(images)[0], engine=versions)


def pays(passes: int, image_px: int, device: torch.device) -> bool:
    """Whether ONNX Runtime may be faster. It follows from the pictures alone and not from what the cache holds, so that
    the same command always has the same result."""
    return device.type == "cpu" and passes * image_px**2 >= LEAST_PIXELS


def open_session(part: Part, checkpoint: Checkpoint) -> Session:
    """A session for this part of the network of `checkpoint`, which is in eval mode; raises what torch's exporter and
    ONNX Runtime raise where they cannot compute it."""
    graph = open_graph(part, checkpoint)
    return start_session(graph, pictures_at_once(checkpoint.image_px), weights_for(graph, part.network))


def _open(part: Part, checkpoint: Checkpoint, pixels: Pixels, passes: int) -> Session | None:
    """A session for this part of the network, or None where it is not to be used, for a reason that is reported. The
    network is in eval mode from then on."""
    part.network.eval()
    device = part.network.mean.device
    if not pays(passes, checkpoint.image_px, device):
        return None
    images = fetch_pixels(pixels, device)(np.arange(min(CHECKED_PICTURES, len(pixels)), dtype=np.int64))
    try:
        session = open_session(part, checkpoint)
        disagreement = _disagreement(part, session, images)
    except UserError:
        raise
    except Exception as error:  # torch's exporter and ONNX Runtime have dozens of classes of errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        disagreement = f"this network cannot be exported ({reason})"
    if disagreement:
        say(f"  PyTorch computes what is frozen, and not ONNX Runtime: {disagreement}")
        return None
    return session


@torch.no_grad()
def _disagreement(part: Part, session: Session, images: Tensor) -> str:
    """How the session's outputs for `images` differ from the network's, or an empty text if they agree."""
    for name, own, found in zip(part.outputs, part.compute(images), session.run(images), strict=True):
        largest = 1.0 if name == LOGITS else float(own.abs().max())
        difference = float((own - found).abs().max())
        if not difference <= TOLERANCE * largest:
            return f"its {name} differ from the network's by {difference:.2g}"
    return ""
