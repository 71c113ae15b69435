"""A timm backbone as a body: all of it but the classifier, with the weights that training starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from pipeline.models.weight_file import State, fault, fits, matching, read_states
from pipeline.models.weights import Weights
from pipeline.system.errors import UserError


@dataclass(frozen=True)
class Body:
    """`module` maps normalised images to activations (images, `activations`)."""

    module: nn.Module
    activations: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def build_body(backbone: str, image_px: int, drop_path: float = 0.0) -> Body:
    """The backbone without its classifier, its weights not yet loaded.

    A plain average pool at its end gets a maximum pool beside it, as in fastai's head, so that a small mark anywhere in
    the picture still shows in the activations. In training, blocks are skipped at up to the rate `drop_path` (Huang et
    al. 2016, "Deep Networks with Stochastic Depth"). Raises UserError if it takes no image of `image_px`, or no such
    rate.
    """
    module = _create(backbone, image_px, {"drop_path_rate": drop_path} if drop_path else {})
    pool = getattr(module, "global_pool", None)
    if isinstance(pool, SelectAdaptivePool2d) and isinstance(pool.flatten, nn.Flatten):
        module.global_pool = SelectAdaptivePool2d(pool_type="catavgmax", flatten=True)
    settings: dict[str, Any] = dict(module.pretrained_cfg)  # type: ignore[arg-type]
    return Body(module, _count_activations(module, backbone, image_px), tuple(settings["mean"]), tuple(settings["std"]))


def load_weights(module: nn.Module, backbone: str, weights: Weights) -> None:
    """Load `weights` into a body made by `build_body`; UserError if they are of another architecture, or broken.

    Random weights are those that the module was made with.
    """
    if weights.kind == "random":
        return
    if weights.kind == "hub":
        _load_matching(module, [_hub_state(backbone, weights)], backbone, "timm's hub")
    elif weights.kind == "package":
        _load_matching(module, [packaged_state(backbone, weights)], backbone, str(weights.path))
    else:
        assert weights.path is not None
        _load_matching(module, read_states(weights.path), backbone, str(weights.path))


def packaged_state(backbone: str, weights: Weights) -> dict[str, Tensor]:
    """A package's tensors, classifier included, under timm's names.

    They are matched by order; UserError unless all shapes are the same.
    """
    assert weights.path is not None
    packaged = read_states(weights.path)[0]
    with torch.device("meta"):
        expected = timm.create_model(backbone).state_dict()
    shapes = [tuple(tensor.shape) for tensor in packaged.values()]
    if shapes != [tuple(tensor.shape) for tensor in expected.values()]:
        raise UserError(f"The weights in {weights.path} are not laid out like {backbone}; use model.weights=hub.")
    return dict(zip(expected, packaged.values(), strict=True))


def _create(backbone: str, image_px: int, settings: Mapping[str, Any]) -> nn.Module:
    """A backbone made for one image size is built to take any, or else this one."""
    try:
        module: nn.Module = timm.create_model(backbone, num_classes=0, **settings)
        patches = getattr(module, "patch_embed", None)
        if not (getattr(patches, "strict_img_size", False) and getattr(patches, "img_size", None)):
            return module
        try:
            return timm.create_model(backbone, num_classes=0, dynamic_img_size=True, **settings)
        except TypeError:
            return timm.create_model(backbone, num_classes=0, img_size=image_px, **settings)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        with_drop_path = " with drop_path" if settings else ""
        raise UserError(
            f"model.backbone {backbone} cannot be built for {image_px} px{with_drop_path}: {error}"
        ) from None


def _count_activations(module: nn.Module, backbone: str, image_px: int) -> int:
    module.eval()
    try:
        with torch.no_grad():
            shape = module(torch.zeros(1, 3, image_px, image_px)).shape
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.backbone {backbone} takes no image of {image_px} px: {error}") from None
    if len(shape) != 2:
        raise UserError(f"model.backbone {backbone} gives activations of shape {tuple(shape)}; it needs a pooled body.")
    return int(shape[1])


def _hub_state(backbone: str, weights: Weights) -> dict[str, Tensor]:
    """What timm makes of its hub's weights: of the file that was fetched, or else of what it fetches itself."""
    overlay = None if weights.path is None else _overlay(backbone, weights.path)
    try:
        module = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay)
        state: dict[str, Tensor] = module.state_dict()
    except Exception as error:  # the hub's client has a dozen classes of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if weights.path is not None:
            raise UserError(
                f"The weights of {backbone} in {weights.path} cannot be read ({reason}); remove that file, so that it "
                "is fetched again."
            ) from None
        raise UserError(
            f"The weights of {backbone} cannot be had from timm's hub ({reason}); "
            "check the network, or set model.weights to a file."
        ) from None
    return state


def _overlay(backbone: str, path: Path) -> dict[str, object]:
    """Has timm read the file at `path`; those that are not of its hub, it reads by functions of their own."""
    facts = get_pretrained_cfg(backbone)
    return {"file": str(path), "custom_load": bool(facts and facts.custom_load and not facts.hf_hub_id)}


def _load_matching(module: nn.Module, states: list[State], backbone: str, source: str) -> None:
    wanted = module.state_dict()
    state = matching(states, wanted)
    missing = [name for name in wanted if name not in state or not fits(state[name], wanted[name])]
    if missing:
        raise UserError(
            f"The weights from {source} do not fit {backbone}: {len(missing)} of {len(wanted)} tensors are missing or "
            f"of another shape, {missing[0]} for one."
        )
    converted = {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}
    for name, tensor in converted.items():
        if found := fault(name, tensor):
            raise UserError(f"The weights from {source} are broken: in {name} {found}; give others in model.weights.")
    module.load_state_dict(converted)
