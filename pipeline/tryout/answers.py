"""What a model says of one picture: its label, what speaks for it, what it is like, and whether to doubt it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.data.batches import fetch_pixels
from pipeline.data.decode import Pixels
from pipeline.evaluation.grad_cam import Heat, grad_cam
from pipeline.evaluation.neighbours import Neighbour, Neighbours, load_neighbours
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.classifier import Classifier, Squares, load_classifier, member_folders
from pipeline.models.network import Network
from pipeline.system.device import mixed_precision

# Below this calibrated probability more than a quarter of the answers are wrong.
LEAST_CONFIDENCE = 0.75
SHOWN_NEIGHBOURS = 6
# A picture that is so similar to a training picture shows the same.
SAME_SIMILARITY = 0.99


@dataclass(frozen=True)
class Answer:
    """The `probabilities` of the classes, the likeliest first, of the `square` that the network sees; its `heat` (size,
    size), the brighter, the more it speaks for the likeliest class, or None where the backbone has no map; the nearest
    training pictures; and why to `doubt` the answer, a sentence each."""

    probabilities: Sequence[tuple[str, float]]
    square: Pixels
    heat: Heat | None
    neighbours: Sequence[Neighbour]
    doubts: Sequence[str]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.probabilities[0][0]


@dataclass(frozen=True)
class TriedModel:
    """A classifier as it is served, the network that it computes with, of several the first, and the training pictures
    that were kept, if any."""

    classifier: Classifier
    network: Network
    neighbours: Neighbours | None

    def answer(self, squares: Squares) -> Answer:
        """What it makes of a picture, as the classifier has decoded it."""
        square = squares[0]  # that of the first network
        classes = self.classifier.checkpoint.classes
        (probabilities,) = self.classifier.probabilities([squares], 1)
        order = np.argsort(-probabilities, kind="stable")
        images = fetch_pixels(square[None], self.classifier.device)(np.zeros(1, dtype=np.int64))
        heat = grad_cam(self.network, images, torch.tensor([int(order[0])], device=self.classifier.device))
        ranked = [(classes[index], float(probabilities[index])) for index in order]
        near = self._nearest(images)
        least = -1.0 if self.neighbours is None else self.neighbours.least_similarity
        doubts = [doubt_confidence(ranked), doubt_likeness(near, least), doubt_label(ranked[0][0], near)]
        return Answer(ranked, square, None if heat is None else heat[0], near, [one for one in doubts if one])

    @torch.inference_mode()
    def _nearest(self, images: torch.Tensor) -> list[Neighbour]:
        if self.neighbours is None:
            return []
        with mixed_precision(self.classifier.device):
            activations = self.network.activations(images)
        return self.neighbours.nearest(activations[0].half().cpu().numpy(), SHOWN_NEIGHBOURS)


def load_tried_model(checkpoint: Path, neighbours: Path | None, device: torch.device) -> TriedModel:
    """The model in the folder `checkpoint` of a logged model, on `device`, with the training pictures that
    `save_neighbours` wrote into the folder `neighbours`, if there is one. It has answered once, so that the first
    picture does not wait for what a GPU loads then."""
    classifier = load_classifier(checkpoint, device)
    own = classifier.members[0].network
    first = member_folders(checkpoint)[0]
    network = own if isinstance(own, Network) else load_checkpoint(first)[0].move_to(device, 0).eval()
    model = TriedModel(classifier, network, None if neighbours is None else load_neighbours(neighbours))
    channels = 1 if classifier.checkpoint.grey else 3
    model.answer(tuple(np.zeros((size, size, channels), dtype=np.uint8) for size in classifier.sizes_px))
    return model


def doubt_confidence(ranked: Sequence[tuple[str, float]]) -> str:
    """Why to doubt an answer with these classes and probabilities, the likeliest first; empty if it is sure."""
    label, confidence = ranked[0]
    if confidence >= LEAST_CONFIDENCE:
        return ""
    other = f", and {ranked[1][0]} {ranked[1][1]:.0%}" if len(ranked) > 1 else ""
    wrong = round(10 * (1 - confidence))
    return f"It is unsure: it gives {label} {confidence:.0%}{other}. Of 10 such answers, expect {wrong} to be wrong."


def doubt_likeness(near: Sequence[Neighbour], least_similarity: float) -> str:
    """Why to doubt the answer for a picture with these nearest training pictures: it is one of them, or unlike all."""
    if near and near[0].similarity >= SAME_SIMILARITY:
        return f"It is all but the same as {near[0].path}, on which the model was trained: of course it knows it."
    if not near or near[0].similarity >= least_similarity:
        return ""
    return (
        f"It is unlike the training pictures: the nearest has a similarity of {near[0].similarity:.2f}, and 98% of the "
        f"validation pictures have one of {least_similarity:.2f} or more. It may show none of the classes."
    )


def doubt_label(label: str, near: Sequence[Neighbour]) -> str:
    """Why to doubt the `label`, if most of the nearest training pictures have another one."""
    if not near:
        return ""
    ((other, count),) = Counter(one.label for one in near).most_common(1)
    if other == label or 2 * count <= len(near):
        return ""
    return f"Of the {len(near)} training pictures nearest to it, {count} are labelled {other}."
