"""The classifier as one ONNX file, for serving without Python, and how far its answers differ."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from pipeline.data.decode import Pixels
from pipeline.models.classifier import Classifier

MODEL, FACTS = "model.onnx", "preprocessing.json"
INPUT, OUTPUT = "images", "probabilities"


class _Calibrated(nn.Module):
    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return (logits / self.temperature).softmax(1)


def export_onnx(classifier: Classifier, squares: Sequence[Pixels], folder: Path) -> float:
    """Write `model.onnx` and `preprocessing.json`, which describes its input, into `folder`.

    The model takes any number of pictures at a time. Gives the largest difference between its probabilities and the
    classifier's on `squares`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = _Calibrated(classifier.network, classifier.temperature).to("cpu").eval()
    images = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
    _export(module, images[:2], folder / MODEL)
    (folder / FACTS).write_text(json.dumps(_facts(classifier), indent=2, ensure_ascii=False), encoding="utf-8")
    classifier.network.to(classifier.device)
    session = onnxruntime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: images.numpy()})[0]
    return float(np.abs(found - classifier.probabilities(squares, len(squares))).max())


def _export(module: nn.Module, images: Tensor, path: Path) -> None:
    noisy = logging.getLogger("torch.onnx")
    level, noisy.level = noisy.level, logging.ERROR
    try:
        program: Any = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            verbose=False,
            dynamic_shapes={INPUT: {0: torch.export.Dim("pictures")}},
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
        program.save(str(path), external_data=False)
    finally:
        noisy.level = level


def _facts(classifier: Classifier) -> dict[str, object]:
    checkpoint = classifier.checkpoint
    return {
        "input": INPUT,
        "shape": ["pictures", 1 if checkpoint.grey else 3, checkpoint.image_px, checkpoint.image_px],
        "values": "float32, a pixel from 0 to 255 divided by 255; grey" if checkpoint.grey else
        "float32, a pixel from 0 to 255 divided by 255; red, green, blue",
        "fit": checkpoint.fit,
        "ranges": {kind: list(numbers) for kind, numbers in checkpoint.ranges.items()},
        "resize": "bilinear, antialiased",
        "output": OUTPUT,
        "classes": checkpoint.classes,
        "temperature": classifier.temperature,
        "note": "Normalisation and temperature are part of the model. Deep pictures (16 or 32 bits, floats) are scaled "
        "to 0 to 255 from `ranges`, and clipped; without one, from what their files can hold.",
    }  # fmt: skip
