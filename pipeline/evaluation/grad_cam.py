"""Grad-CAM: which part of a picture speaks for a class (Selvaraju et al. 2017)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.batches import fetch_pixels
from pipeline.data.decode import Pixels
from pipeline.models.network import Network
from pipeline.system.device import mixed_precision

Heat = npt.NDArray[np.float32]
Heats = Mapping[int, Heat]
PICTURES_AT_ONCE = 16
NO_MAP = (
    "Grad-CAM is left out: the last features of this backbone are tokens or vectors, not a map of the "
    "picture to lay over it."
)


def grad_cam(network: Network, images: Tensor, targets: Tensor) -> Heat | None:
    """How much each position of `images` (N, channels, size, size) speaks for its class in `targets`, as (N, size,
    size) from 0 to 1; None where the body's last features are no map.

    The body's last feature map is weighted, channel by channel, with the mean gradient of the class's logit.
    """
    network.eval()
    with torch.no_grad(), mixed_precision(images.device):
        features = network.body.forward_features(network.normalise(images))  # type: ignore[operator]
    channels_at = _channels_at(features, getattr(network.body, "num_features", None))
    if channels_at is None:
        return None
    features = features.detach().float().requires_grad_()
    with torch.enable_grad():
        logits = network.head(network.body.forward_head(features))  # type: ignore[operator]
        (gradients,) = torch.autograd.grad(logits.gather(1, targets.view(-1, 1)).sum(), features)
    features, gradients = (tensor.detach().movedim(channels_at, 1) for tensor in (features, gradients))
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    heat = (weights * features).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    heat = heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    spread: Heat = heat.cpu().numpy()
    return spread


def _channels_at(features: Tensor, channels: int | None) -> int | None:
    """The dimension of the channels in a feature map, which most backbones put first and some (swin) last."""
    if features.ndim != 4:
        return None
    return 3 if channels == features.shape[3] != features.shape[1] else 1


def explain_predictions(
    network: Network, pixels: Pixels, rows: pd.DataFrame, classes: list[str], device: torch.device
) -> Heats | None:
    """By manifest row, the heat of each picture of these rows of a predictions table for the class predicted; None if
    the backbone has no feature map."""
    fetch = fetch_pixels(pixels, device)
    numbers = {name: number for number, name in enumerate(classes)}
    found: dict[int, Heat] = {}
    for start in range(0, len(rows), PICTURES_AT_ONCE):
        part = rows.iloc[start : start + PICTURES_AT_ONCE]
        images = fetch(part["row"].to_numpy(np.int64))
        heats = grad_cam(network, images, torch.tensor(part["predicted"].map(numbers).to_numpy(), device=device))
        if heats is None:
            return None
        found |= dict(zip(part["row"].tolist(), heats, strict=True))
    return found
