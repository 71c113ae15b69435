"""Whether a backbone can do what a recipe asks of it, found out before anything is computed."""

from collections.abc import Sequence

import torch

from pipeline.models.body import build_body
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import Cut, cut_network
from pipeline.models.layer_groups import layer_groups
from pipeline.models.network import Network
from pipeline.system.errors import UserError


def check_network(backbone: str, sizes_px: Sequence[int], cut: Cut, drop_path: float = 0.0) -> None:
    """UserError if this backbone takes no images of one of `sizes_px`, cannot go on from the first at the others, has
    no layer groups, cannot be cut, or takes no `drop_path`. The random state is left as it was."""
    with torch.random.fork_rng():
        first, *others = dict.fromkeys(sizes_px)
        network = _without_memory(backbone, first)
        layer_groups(network)
        if drop_path:
            build_body(backbone, first, drop_path)
        for size_px in others:
            if _shapes(_without_memory(backbone, size_px)) != _shapes(network):
                raise UserError(
                    f"model.backbone {backbone} is made for one image size and cannot go on at {size_px} px; set "
                    f"resize.image_px to {first}, as precompute.image_px, or choose another backbone."
                )
        if cut != "head":
            cut_network(_build(backbone, first), cut, first)


def _without_memory(backbone: str, image_px: int) -> Network:
    """The network without its weights, whose shapes alone are computed; with them if it is not made for that."""
    try:
        with torch.device("meta"):
            return _build(backbone, image_px)
    except Exception:  # whatever it is, it counts if it is raised again
        return _build(backbone, image_px)


def _build(backbone: str, image_px: int) -> Network:
    return build_network(Checkpoint(backbone, ["", ""], 0, 0.0, image_px, "crop", False))


def _shapes(network: Network) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}
