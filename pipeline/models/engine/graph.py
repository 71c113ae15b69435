"""Graphs: networks as ONNX without their weights, exported once for each structure and image size.

They are kept in the cache. The weights of a graph are named as in the network's state, so that those of any network of
the same structure can be put in, trained or not: see `session`.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from pipeline.cache.hashing import library_versions
from pipeline.cache.store import open_or_build
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.cut import Cut, Halves
from pipeline.models.layer_groups import layer_groups
from pipeline.models.network import Network

KIND, FILE = "graphs", "graph.onnx"
INPUT, ACTIVATIONS, LOGITS = "images", "activations", "logits"
# The dimensions of the graph's input that may vary.
PICTURES = "pictures"
# A part of the store's key: to be counted up when `Part` or the export starts to give another graph.
GRAPH_VERSION = 1
# Counts batches and does not go into any result.
_COUNTER = "num_batches_tracked"
_PREFIX = "network."


@dataclass(frozen=True)
class Part:
    """What of `network` is computed: `compute` maps images (N, channels, size, size) to the `outputs`, up to the `cut`
    or, for "head", to the end. Its graph must have all of `weights`, names of the network's state."""

    network: Network
    cut: Cut
    compute: Callable[[Tensor], tuple[Tensor, ...]]
    outputs: tuple[str, ...]
    weights: frozenset[str]


def whole(network: Network) -> Part:
    """All of the network: activations and logits."""
    weights = frozenset(name for name in network.state_dict() if not name.endswith(_COUNTER))
    return Part(network, "head", network.with_activations, (ACTIVATIONS, LOGITS), weights)


def below(network: Network, halves: Halves) -> Part:
    """What lies below the cut between these `halves`; where that is the body, all of the network."""
    if halves.cut == "head":
        return whole(network)
    early = frozenset(layer_groups(network)["early"])
    return Part(network, halves.cut, lambda images: (halves.below(images),), (ACTIVATIONS,), early)


def open_graph(part: Part, checkpoint: Checkpoint) -> bytes:
    """The ONNX graph of this part of the network of `checkpoint`, from the cache, exported if it is not there.

    It takes any number of pictures of `checkpoint.image_px`. Raises what torch.onnx raises where it cannot be exported,
    and ValueError if weights went into the graph under other names.
    """
    key_parts = {
        "backbone": checkpoint.backbone,
        "hidden": checkpoint.hidden,
        "classes": len(checkpoint.classes),
        "size_px": checkpoint.image_px,
        "grey": checkpoint.grey,
        "version": GRAPH_VERSION,
        "versions": library_versions("torch", "timm", "onnx"),
    }

    def build(folder: Path) -> None:
        channels = 1 if checkpoint.grey else 3
        graph = _export(part, torch.zeros(2, channels, checkpoint.image_px, checkpoint.image_px))
        (folder / FILE).write_bytes(graph.SerializeToString())

    cut = {} if part.cut == "head" else {"cut": part.cut}
    return (open_or_build(KIND, key_parts | cut, build)[0] / FILE).read_bytes()


def weights_for(graph: bytes, network: Network) -> Mapping[str, Tensor]:
    """The network's weights, by name, as far as `graph` takes them."""
    taken = {weight.name for weight in onnx.load_from_string(graph).graph.initializer}
    state = {f"{_PREFIX}{name}": tensor.detach() for name, tensor in network.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name in taken}


class _Traced(nn.Module):
    """A part of a network, whose weights the export finds under the names of its state."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.network = part.network
        self._compute = part.compute

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self._compute(images)


def _export(part: Part, images: Tensor) -> onnx.ModelProto:
    """The graph without weights, found by running `part` on `images`.

    By tracing, which takes a second; torch's newer exporter takes twenty on the same network. Nothing is folded, so
    that all weights stay as they are: ONNX Runtime folds them when a session is made.
    """
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of constants in the graph: the sizes, which are this graph's own
        torch.onnx.export(
            _Traced(part),
            (images,),
            file,  # type: ignore[arg-type]
            dynamo=False,
            verbose=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            # What ONNX does not have goes into the graph as it is, and ONNX Runtime names it; torch would print it all.
            operator_export_type=torch.onnx.OperatorExportTypes.ONNX_FALLTHROUGH,
            do_constant_folding=False,
            keep_initializers_as_inputs=True,  # else weights of the same value, as fresh ones are, become one
            input_names=[INPUT],
            output_names=list(part.outputs),
            dynamic_axes={name: {0: PICTURES} for name in (INPUT, *part.outputs)},
        )
    model = onnx.load_from_string(file.getvalue())
    (images_input,) = (one for one in model.graph.input if one.name == INPUT)
    del model.graph.input[:]
    model.graph.input.append(images_input)
    _take_weights_out(model.graph, part)
    return model


def _take_weights_out(graph: onnx.GraphProto, part: Part) -> None:
    state = {f"{_PREFIX}{name}" for name in part.network.state_dict()}
    found = {weight.name for weight in graph.initializer}
    missing = sorted({f"{_PREFIX}{name}" for name in part.weights} - found)
    if missing:
        raise ValueError(f"the export hides {len(missing)} of its weights, {missing[0].removeprefix(_PREFIX)} for one")
    for weight in graph.initializer:
        if weight.name in state:
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=weight.name)
