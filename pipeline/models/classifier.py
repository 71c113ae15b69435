"""Trained networks with their own preprocessing and calibration: pictures in, probabilities and labels out."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from pipeline.data.augment import Flip, take_view, view_matrices
from pipeline.data.batches import fetch_pixels
from pipeline.data.decode import Pixels, decode_square
from pipeline.models.engine.session import pictures_at_once, start_session
from pipeline.models.facts import Checkpoint, read_facts
from pipeline.system.device import pictures_per_pass
from pipeline.system.errors import UserError

Probabilities = npt.NDArray[np.float64]
# A picture at each size that a classifier's networks take.
Squares: TypeAlias = tuple[Pixels, ...]
CALIBRATION = "calibration.json"
# A network as ONNX, images to probabilities (see `engine.onnx_file`), if it has been put beside its checkpoint.
ONNX = "model.onnx"
# The folders of an ensemble's networks begin so.
MEMBER = "member_"
# How many of the likeliest classes an answer lists by default.
TOP_K = 5


@dataclass(frozen=True)
class Tta:
    """Test-time augmentation: over which `views` of a picture probabilities are averaged, by the recipe's `flip` and
    `crop` (see `augment.view_matrices`)."""

    flip: Flip
    crop: float
    views: int


@dataclass(frozen=True)
class Member:
    """A network of a classifier: `network` gives logits, up to a constant for each picture, and is in eval mode; its
    `checkpoint` says how it is built."""

    network: Callable[[Tensor], Tensor]
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Classifier:
    """The `members`, on `device`, whose probabilities are averaged: one network, or an ensemble of several for the same
    classes. The logarithms of their mean are divided by `temperature`. `extensions` are those of its recipe's pictures,
    and `tta` its views, if they are known."""

    members: tuple[Member, ...]
    temperature: float
    device: torch.device
    extensions: tuple[str, ...] = ()
    tta: Tta | None = None

    @property
    def checkpoint(self) -> Checkpoint:
        """The first member's; all have its classes, and see pictures made square and scaled as it says."""
        return self.members[0].checkpoint

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The sizes of pictures that the members take, each once."""
        return tuple(dict.fromkeys(member.checkpoint.image_px for member in self.members))

    def decode(self, content: bytes) -> Squares:
        """An encoded picture as squares of uint8, one for each of `sizes_px`; errors as in `decode_square`."""
        facts = self.checkpoint
        return tuple(decode_square(content, size, facts.fit, facts.grey, facts.ranges) for size in self.sizes_px)

    def probabilities(self, pictures: Iterable[Squares], batch_size: int, with_tta: bool = False) -> Probabilities:
        """Calibrated class probabilities (pictures, classes) of what `decode` gave, read a batch at a time, so that
        pictures may be decoded meanwhile; `with_tta` the mean over its views. A GPU may take more than `batch_size`.

        UserError if TTA is asked for and its views are not known.
        """
        if with_tta and self.tta is None:
            raise UserError(
                "The model does not know its views for TTA, since it was logged by an earlier version of this project; "
                "evaluate its run again, or leave tta out."
            )
        views = view_matrices(self.tta.flip, self.tta.crop, self.tta.views) if with_tta and self.tta else None
        waiting, chunks = iter(pictures), []
        count = pictures_per_pass(batch_size, max(self.sizes_px), self.device)
        while batch := list(islice(waiting, count)):
            chunks.append(self._of_batch(batch, views))
        return np.concatenate(chunks) if chunks else np.empty((0, len(self.checkpoint.classes)))

    @torch.inference_mode()
    def _of_batch(self, batch: Sequence[Squares], views: Tensor | None) -> Probabilities:
        rows = np.arange(len(batch), dtype=np.int64)
        sizes = zip(self.sizes_px, zip(*batch, strict=True), strict=True)
        images = {size: fetch_pixels(np.stack(squares), self.device)(rows) for size, squares in sizes}
        seen = []
        for member in self.members:
            plain = images[member.checkpoint.image_px]
            shown = (plain,) if views is None else (take_view(plain, view) for view in views)
            seen += [member.network(one).double().softmax(1) for one in shown]
        mean = torch.stack(seen).mean(0)
        probabilities: Probabilities = (mean.log() / self.temperature).softmax(1).cpu().numpy()
        return probabilities


def save_classifier(
    checkpoints: Sequence[Path],
    temperature: float,
    folder: Path,
    extensions: Sequence[str] = (),
    tta: Tta | None = None,
) -> list[Path]:
    """Write the checkpoints in the folders `checkpoints` and, as JSON beside them, the temperature, the endings of the
    pictures' names and the views of TTA into `folder`; gives the folder of each member, which is `folder` itself if
    there is one."""
    is_one = len(checkpoints) == 1
    members = [folder] if is_one else [folder / f"{MEMBER}{number:03d}" for number in range(1, len(checkpoints) + 1)]
    for checkpoint, member in zip(checkpoints, members, strict=True):
        shutil.copytree(checkpoint, member)
    facts: dict[str, object] = {"temperature": temperature}
    facts |= ({"extensions": list(extensions)} if extensions else {}) | ({"tta": asdict(tta)} if tta else {})
    (folder / CALIBRATION).write_text(json.dumps(facts), encoding="utf-8")
    return members


def load_classifier(folder: Path, device: torch.device, one_by_one: bool = True) -> Classifier:
    """The classifier that `save_classifier` wrote, on `device`.

    On a CPU a member answers from the ONNX file that was put beside it, if one was: no network is built. Unless
    pictures come `one_by_one`, it takes several at a time.
    """
    calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
    temperature, extensions = float(calibration["temperature"]), tuple(calibration.get("extensions", ()))
    tta = Tta(**calibration["tta"]) if "tta" in calibration else None
    folders = member_folders(folder)
    # The file of a network that answers alone has the temperature in it, that of one among several has not.
    within = temperature if len(folders) == 1 else 1.0
    members = tuple(_load_member(one, device, one_by_one, within) for one in folders)
    return Classifier(members, temperature, device, extensions, tta)


def member_folders(folder: Path) -> list[Path]:
    """Where `save_classifier` put the checkpoint of each member."""
    return sorted(folder.glob(f"{MEMBER}*")) or [folder]


def _load_member(folder: Path, device: torch.device, one_by_one: bool, temperature: float) -> Member:
    if device.type == "cpu" and (folder / ONNX).is_file():
        facts = read_facts(folder)
        at_once = 1 if one_by_one else pictures_at_once(facts.image_px)
        return Member(_logits_of(folder / ONNX, at_once, temperature), facts)
    from pipeline.models.checkpoint import load_checkpoint  # it loads timm, which takes seconds

    network, checkpoint = load_checkpoint(folder)
    return Member(network.move_to(device, 0).eval(), checkpoint)


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
