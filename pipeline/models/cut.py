"""A network cut in two between layer groups: the half below the cut is frozen, and its activations can be stored; the
half above is trained on them.

timm's bodies are chains of modules, `forward_features`, and a pooled end, `forward_head`. The cut is made in front of
the first module of the late layer group. An image is used to check that both halves together are the whole network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pipeline.models.layer_groups import layer_groups
from pipeline.models.network import Network
from pipeline.system.errors import UserError

# The name of the first layer group above the cut.
Cut: TypeAlias = Literal["head", "late"]
# The largest difference between two ways to compute the same activations on a GPU, as a share of the largest one.
GPU_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Halves:
    """`below` maps images to the activations at the `cut`, (N, *`shape`), and `above` these to logits: a module that
    shares its weights with the network. `engine` is what computes `below` instead of torch, with its versions, if
    anything does; `work` is by what helpers compute `below` too, where several processes share it."""

    below: Callable[[Tensor], Tensor]
    above: nn.Module
    shape: tuple[int, ...]
    cut: Cut = "head"
    engine: Mapping[str, str] = field(default_factory=dict)
    work: Any = None


def cut_network(network: Network, cut: Cut, image_px: int) -> Halves:
    """The two halves of `network`, whose modes and weights stay as they are.

    UserError if its body is no chain of modules at this cut, for instance if a connection skips the cut.
    """
    if cut == "head":
        return Halves(network.activations, network.head, (network.width,))
    groups = layer_groups(network)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        return _cut_body(network, groups, image_px)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise _cannot_be_cut("its modules are no chain") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


class Above(nn.Module):
    """The late layer group and the head, from activations at the cut to logits.

    It contains the whole network, of which the part below the cut is never run, so that names of parameters, layer
    groups and modes are those of the network.
    """

    def __init__(self, network: Network, chain: list[nn.Module], channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self._chain = tuple(chain)  # in a tuple, since they are modules of the network already
        self._channels_last = channels_last

    def last_activations(self, activations: Tensor) -> Tensor:
        """The body's last activations (N, activations), from those at the cut."""
        if self._channels_last and self.network.is_channels_last:
            activations = activations.contiguous(memory_format=torch.channels_last)
        for module in self._chain:
            activations = module(activations)
        pooled: Tensor = self.network.body.forward_head(activations)  # type: ignore[operator]
        return pooled

    def forward(self, activations: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.network.head(self.last_activations(activations))
        return logits


class _CutReachedError(Exception):
    """Ends a forward pass at the cut."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


@torch.no_grad()
def _cut_body(network: Network, groups: Mapping[str, Sequence[str]], image_px: int) -> Halves:
    """The halves at the late group; the errors of a body that is no chain of modules are raised."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, image_px, image_px, generator=random).to(network.mean.device)
    chain = _chain_above(network, groups, image)

    def below(images: Tensor) -> Tensor:
        hook = chain[0].register_forward_pre_hook(_stop)
        try:
            network.activations(images)
        except _CutReachedError as reached:
            return reached.activations
        finally:
            hook.remove()
        raise RuntimeError("the cut was not reached")

    activations = below(image)
    is_channels_last = activations.ndim == 4 and not activations.is_contiguous()
    above = Above(network, chain, is_channels_last)
    found, whole = above.last_activations(activations), network.activations(image)
    tolerance = GPU_TOLERANCE if whole.is_cuda else 0.0
    if found.shape != whole.shape or not bool((found - whole).abs().max() <= tolerance * whole.abs().max()):
        raise _cannot_be_cut("the modules above it give other activations than the whole")
    return Halves(below, above, tuple(activations.shape[1:]), "late")


def _chain_above(network: Network, groups: Mapping[str, Sequence[str]], image: Tensor) -> list[nn.Module]:
    """The modules from the first one of the late group to the end of the body's features, in running order."""
    early, late = ({name.removeprefix("body.") for name in groups[group]} for group in ("early", "late"))
    modules = dict(_largest_modules(network.body, late, ""))
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))  # gives None: keeps the inputs
        for module in modules.values()
    ]
    try:
        network.body.forward_features(network.normalise(image))  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in modules.items()}

    def has_any_of(module: nn.Module, group: set[str]) -> bool:
        return any(name in group for name, _ in module.named_parameters(prefix=names[module]))

    first = next((index for index, module in enumerate(called) if has_any_of(module, late)), None)
    if first is None or any(has_any_of(module, early) for module in called[first:]):
        raise _cannot_be_cut("its early layers are not all run before its late ones")
    return called[first:]


def _largest_modules(module: nn.Module, late: set[str], prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules that do not lie in both layer groups, by name."""
    for name, child in module.named_children():
        full_name = f"{prefix}{name}"
        if len({inner in late for inner, _ in child.named_parameters(prefix=full_name)}) > 1:
            yield from _largest_modules(child, late, f"{full_name}.")
        else:
            yield full_name, child


def _stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    raise _CutReachedError(inputs[0])


def _cannot_be_cut(reason: str) -> UserError:
    return UserError(
        f"precompute.cut is late, but this backbone cannot be cut in front of its late layer group ({reason}); set "
        "precompute.cut to head, or choose another model.backbone."
    )
