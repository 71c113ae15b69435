"""A classifier's network as an ONNX file, for serving without Python, and how far its answers differ."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pipeline.data.decode import Pixels
from pipeline.models.classifier import ONNX, Classifier, Member
from pipeline.models.engine.graph import INPUT, LOGITS, PICTURES, open_graph, weights_for, whole
from pipeline.models.engine.session import pictures_at_once, start_session
from pipeline.models.facts import Checkpoint
from pipeline.models.network import Network

MODEL, FACTS, OUTPUT = ONNX, "preprocessing.json", "probabilities"
ENSEMBLE = "ensemble.json"


class _Calibrated(nn.Module):
    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return (logits / self.temperature).softmax(1)


def export_onnx(member: Member, temperature: float, squares: Sequence[Pixels], folder: Path) -> float:
    """Write `model.onnx` and `preprocessing.json`, which describes its input, into `folder`.

    The model takes any number of pictures at a time, and gives probabilities at this temperature. Gives the largest
    difference between them and those of the `member`, which has a network on the CPU, on `squares`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network, path = member.network, folder / MODEL
    assert isinstance(network, Network)
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
    at_once = pictures_at_once(member.checkpoint.image_px)
    network.eval()
    try:
        _fill_graph(network, member.checkpoint, temperature, path)
        found = start_session(path, at_once).run(images)[0]
    except Exception:  # it cannot be traced; torch's newer exporter knows more, and takes far longer
        _export(_Calibrated(network, temperature).eval(), images[:2], path)
        found = start_session(path, at_once).run(images)[0]
    facts = _facts(member.checkpoint, temperature)
    (folder / FACTS).write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
    own = Classifier((member,), temperature, torch.device("cpu")).probabilities(
        [(one,) for one in squares], len(squares)
    )
    return float(np.abs(found.numpy() - own).max())


def describe_ensemble(folder: Path, members: Sequence[str], temperature: float) -> None:
    """Write `ensemble.json`, which says how the files of several `members`, folders in `folder`, make one answer."""
    facts = {
        "members": [f"{member}/{MODEL}" for member in members],
        "temperature": temperature,
        "answer": "softmax(log(mean of the members' probabilities) / temperature); a picture is given to each member "
        f"as the {FACTS} beside it says",
    }
    (folder / ENSEMBLE).write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")


def _fill_graph(network: Network, checkpoint: Checkpoint, temperature: float, path: Path) -> None:
    """Write the network's graph with its weights, and with probabilities instead of activations and logits."""
    graph = open_graph(whole(network), checkpoint)
    model = onnx.load_from_string(graph)
    weights = weights_for(graph, network)
    for weight in model.graph.initializer:
        if weight.name in weights:
            weight.CopyFrom(onnx.numpy_helper.from_array(weights[weight.name].contiguous().numpy(), weight.name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(temperature, dtype=np.float32), "temperature"))
    model.graph.node.append(onnx.helper.make_node("Div", [LOGITS, "temperature"], ["calibrated"]))
    model.graph.node.append(onnx.helper.make_node("Softmax", ["calibrated"], [OUTPUT], axis=1))
    shape: list[str | int | None] = [PICTURES, len(checkpoint.classes)]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, path)


def _export(module: nn.Module, images: Tensor, path: Path) -> None:
    noisy = logging.getLogger("torch.onnx")
    level, noisy.level = noisy.level, logging.ERROR
    try:
        program: Any = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            verbose=False,
            dynamic_shapes={INPUT: {0: torch.export.Dim(PICTURES)}},
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        program.save(str(path), external_data=False)
    finally:
        noisy.level = level


def _facts(checkpoint: Checkpoint, temperature: float) -> dict[str, object]:
    return {
        "input": INPUT,
        "shape": [PICTURES, 1 if checkpoint.grey else 3, checkpoint.image_px, checkpoint.image_px],
        "values": "float32, a pixel from 0 to 255 divided by 255; grey" if checkpoint.grey else
        "float32, a pixel from 0 to 255 divided by 255; red, green, blue",
        "fit": checkpoint.fit,
        "ranges": {kind: list(numbers) for kind, numbers in checkpoint.ranges.items()},
        "resize": "bilinear, antialiased",
        "output": OUTPUT,
        "classes": checkpoint.classes,
        "temperature": temperature,
        "note": "Normalisation and temperature are part of the model. Deep pictures (16 or 32 bits, floats) are scaled "
        "to 0 to 255 from `ranges`, and clipped; without one, from what their files can hold.",
    }  # fmt: skip
