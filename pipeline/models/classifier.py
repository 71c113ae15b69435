"""A trained network with its own preprocessing and calibration: pictures in, probabilities and labels out."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.data.batches import fetch_pixels
from pipeline.data.decode import Pixels, decode_square
from pipeline.models.engine.session import pictures_at_once, start_session
from pipeline.models.facts import Checkpoint, read_facts
from pipeline.system.device import pictures_per_pass

Probabilities = npt.NDArray[np.float64]
CALIBRATION = "calibration.json"
# The classifier as ONNX, images to calibrated probabilities (see `engine.onnx_file`), if it has been put there.
ONNX = "model.onnx"
# How many of the likeliest classes an answer lists by default.
TOP_K = 5


@dataclass(frozen=True)
class Classifier:
    """`network`, which gives logits and is in eval mode on `device`, its `checkpoint`, the temperature that its logits
    are divided by, and the `extensions` of its recipe's pictures, if they are known."""

    network: Callable[[Tensor], Tensor]
    checkpoint: Checkpoint
    temperature: float
    device: torch.device
    extensions: tuple[str, ...] = ()

    def decode(self, content: bytes) -> Pixels:
        """An encoded picture as the square of uint8 that the network was trained on; errors as in `decode_square`."""
        facts = self.checkpoint
        return decode_square(content, facts.image_px, facts.fit, facts.grey, facts.ranges)

    def probabilities(self, squares: Iterable[Pixels], batch_size: int) -> Probabilities:
        """Calibrated class probabilities (pictures, classes) of squares from `decode`, read a batch at a time, so that
        they may be decoded meanwhile. A GPU may take more than `batch_size`."""
        waiting, chunks = iter(squares), []
        count = pictures_per_pass(batch_size, self.checkpoint.image_px, self.device)
        while batch := list(islice(waiting, count)):
            chunks.append(self._of_batch(np.stack(batch)))
        return np.concatenate(chunks) if chunks else np.empty((0, len(self.checkpoint.classes)))

    @torch.inference_mode()
    def _of_batch(self, squares: Pixels) -> Probabilities:
        images = fetch_pixels(squares, self.device)(np.arange(len(squares), dtype=np.int64))
        logits = self.network(images)
        probabilities: Probabilities = (logits.double() / self.temperature).softmax(1).cpu().numpy()
        return probabilities


def save_classifier(checkpoint: Path, temperature: float, folder: Path, extensions: Sequence[str] = ()) -> None:
    """Write the checkpoint in the folder `checkpoint` and, as JSON beside it, the temperature and the endings of its
    pictures' names into `folder`."""
    shutil.copytree(checkpoint, folder)
    facts = {"temperature": temperature} | ({"extensions": list(extensions)} if extensions else {})
    (folder / CALIBRATION).write_text(json.dumps(facts), encoding="utf-8")


def load_classifier(folder: Path, device: torch.device, one_by_one: bool = True) -> Classifier:
    """The classifier that `save_classifier` wrote, on `device`.

    On a CPU it answers from the ONNX file that was put beside it, if one was: no network is built. Unless pictures come
    `one_by_one`, it takes several at a time.
    """
    calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    temperature, extensions = float(calibration["temperature"]), tuple(calibration.get("extensions", ()))
    if device.type == "cpu" and (folder / ONNX).is_file():
        facts = read_facts(folder)
        at_once = 1 if one_by_one else pictures_at_once(facts.image_px)
        return Classifier(_logits_of(folder / ONNX, at_once, temperature), facts, temperature, device, extensions)
    from pipeline.models.checkpoint import load_checkpoint  # it loads timm, which takes seconds

    network, checkpoint = load_checkpoint(folder)
    return Classifier(network.to(device).eval(), checkpoint, temperature, device, extensions)


def _logits_of(path: Path, at_once: int, temperature: float) -> Callable[[Tensor], Tensor]:
    """Images to logits, up to a constant for each picture, by the probabilities of the ONNX file at `path`."""
    session = start_session(path, at_once)
    return lambda images: session.run(images)[0].double().log() * temperature


def answer_table(classes: list[str], probabilities: Probabilities) -> pd.DataFrame:
    """A row per picture: `label`, `confidence`, and a column `probability/<class>` for each class."""
    table = pd.DataFrame(
        {"label": np.array(classes)[probabilities.argmax(1)], "confidence": probabilities.max(1, initial=0)}
    )
    columns = {f"probability/{label}": probabilities[:, index] for index, label in enumerate(classes)}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)
