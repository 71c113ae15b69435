"""How fast this machine does what stages do: each kind of work is tried for half a second at most on two cores.

Networks have random weights and images are noise there, since neither changes how long a step takes.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import augment, augmentation
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.manifest import Manifest
from pipeline.data.nvjpeg import choose_decoder
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import Cut, cut_network
from pipeline.models.engine.passes import pays
from pipeline.models.layer_groups import Frozen, training_mode
from pipeline.models.network import Network
from pipeline.recipe.fields import GROUPS
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan.work import Training
from pipeline.system.device import choose_device, mixed_precision, pictures_per_pass
from pipeline.system.errors import UserError
from pipeline.system.machine import usable_cores
from pipeline.training.optim import head_optimizer, thaw
from pipeline.training.step import EAGER_STEPS, steps_of

# On a CPU so many pixels are tried, of pictures of this size at most; what others take is in proportion to theirs.
# Steps on fewer pictures take longer for each of them.
TRIED_PIXELS, MOST_TRIED_PX = 16 * 128**2, 160
# Batches between which a GPU is not waited for.
BATCHES_AT_ONCE = 5
SECONDS_OF_A_TRY = 0.05
# What ONNX Runtime takes of PyTorch's time for a frozen network on a CPU (lite0, 128 to 256 px, two cores).
ENGINE_SHARE = 0.4
# A loop that tells how fast a core is, and its seconds on the machine that overheads were measured on.
LOOPS, REFERENCE_SECONDS = 100_000, 0.0033
_CUTS: dict[Frozen, Cut] = {"early": "late", "body": "head"}
_NO_RATES = dict.fromkeys(GROUPS, 0.0)


class Probe:
    """Speeds for a recipe on the pictures of a manifest; each is measured once."""

    def __init__(self, recipe: Recipe, manifest: Manifest) -> None:
        self._recipe, self._manifest = recipe, manifest
        self._device = choose_device(recipe.device)
        self._known: dict[object, float] = {}

    @cached_property
    def core(self) -> float:
        """How many times as long as on the reference machine plain Python takes on this one."""

        def loop() -> None:
            total = 0
            for number in range(LOOPS):
                total += number & 3

        return _least_seconds(loop) / REFERENCE_SECONDS

    def opening(self, image_px: int) -> float:
        """Seconds to decode a picture for `image_px`."""
        decoder = choose_decoder(self._recipe.data.decoder, self._device)
        pixels = DecodedPixels(self._manifest, image_px, self._recipe.data.fit, decoder)
        count = min(len(pixels), 64 if decoder == "nvjpeg" else 2 * usable_cores())
        rows = np.linspace(0, len(pixels) - 1, count).astype(np.int64)
        return self._once(("opening", image_px), lambda: _least_seconds(lambda: pixels[rows]) / count)

    def passing(self, image_px: int, passes: int) -> float:
        """Seconds for a picture to go through a network that is not trained, as one of so many `passes`."""
        share = ENGINE_SHARE if pays(passes, image_px, self._device) else 1.0
        return share * self._whole(image_px)

    def validating(self, training: Training) -> float:
        """Seconds for a picture to go through the network between the steps of `training`."""
        whole = self._whole(training.image_px)
        return whole - (1 - ENGINE_SHARE) * self._below(training) if self._is_split(training) else whole

    def step(self, training: Training) -> float:
        """Seconds of a step of `training`."""
        if self._device.type == "cuda":
            tried = training.frozen, training.image_px, training.batch_size
            return self._once(tried, lambda: self._step(*tried))
        count, area = self._tried_pictures, self._area(training.image_px)
        whole = self._once(("step", training.frozen), lambda: self._step(training.frozen, self._tried_px, count))
        saved = (1 - ENGINE_SHARE) * self._below(training) if self._is_split(training) else 0.0
        return training.batch_size * max(whole / count * area - saved, 0.0)

    def head_step(self, batch_size: int) -> float:
        """Seconds of a step of the head on stored activations."""

        def measure() -> float:
            head = self._network.head
            optimizer = head_optimizer(head, 0.0, 0.0, self._recipe.training)
            step = steps_of(head, optimizer, options=self._recipe.training)
            inputs = torch.rand(batch_size, self._network.width, device=self._device)
            training_mode(head)
            return self._least(lambda: step(inputs, self._targets(batch_size), None))

        return self._once(("head", batch_size), measure)

    def _is_split(self, training: Training) -> bool:
        """Whether ONNX Runtime computes the part that is frozen."""
        passes = training.steps * training.batch_size
        return training.frozen != "none" and pays(passes, training.image_px, self._device)

    def _whole(self, image_px: int) -> float:
        """Seconds for a picture to go through the network, by PyTorch."""
        if self._device.type == "cuda":
            count = pictures_per_pass(1, image_px, self._device)
            return self._once(("whole", image_px), lambda: self._forward(self._network, image_px, count) / count)
        count = self._tried_pictures
        tried = self._once("whole", lambda: self._forward(self._network, self._tried_px, count) / count)
        return self._area(image_px) * tried

    def _below(self, training: Training) -> float:
        """The same for the layer groups that are frozen, on a CPU."""
        count = self._tried_pictures

        def measure() -> float:
            below = cut_network(self._network, _CUTS[training.frozen], self._tried_px).below
            return self._forward(below, self._tried_px, count) / count

        return self._area(training.image_px) * self._once(("below", training.frozen), measure)

    def _area(self, image_px: int) -> float:
        """How many times as many pixels a picture has as one that is tried."""
        return (image_px / self._tried_px) ** 2

    @property
    def _tried_pictures(self) -> int:
        return max(TRIED_PIXELS // self._tried_px**2, torch.get_num_threads())

    @property
    def _tried_px(self) -> int:
        return self._built[1]

    @property
    def _network(self) -> Network:
        return self._built[0]

    @cached_property
    def _built(self) -> tuple[Network, int]:
        """(The network, the size that it was built for, which some take no other than.)"""
        recipe, manifest = self._recipe, self._manifest
        built = recipe.model.backbone, manifest.classes, recipe.head.hidden, recipe.head.dropout
        first_px = recipe.precompute.image_px
        tried_px = first_px if self._device.type == "cuda" else min(first_px, MOST_TRIED_PX)
        checkpoint = Checkpoint(*built, tried_px, recipe.data.fit, manifest.is_grey)
        try:
            return build_network(checkpoint).to(self._device), tried_px
        except UserError:  # it is not made for the smaller size
            return build_network(replace(checkpoint, image_px=first_px)).to(self._device), first_px

    def _forward(self, compute: Callable[[Tensor], Tensor], image_px: int, count: int) -> float:
        images = self._images(image_px, count)
        self._network.eval()

        def forward() -> None:
            with torch.no_grad(), mixed_precision(self._device):
                compute(images)

        return self._least(forward)

    def _step(self, frozen: Frozen, image_px: int, count: int) -> float:
        """Seconds of a step on so many pictures, with their augmentation."""
        images, targets = self._images(image_px, count), self._targets(count)
        varied = augmentation(**self._recipe.augment.model_dump())
        optimizer = thaw(self._network, frozen, _NO_RATES, 0.0, self._recipe.training)
        step = steps_of(self._network, optimizer, options=self._recipe.training)
        training_mode(self._network, "all")
        generator = torch.Generator()
        return self._least(lambda: step(augment(images, varied, generator), targets, None))

    def _images(self, image_px: int, count: int) -> Tensor:
        channels = 1 if self._manifest.is_grey else 3
        images = torch.rand(count, channels, image_px, image_px, device=self._device)
        return images.contiguous(memory_format=torch.channels_last)

    def _targets(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int64, device=self._device)

    def _least(self, work: Callable[[], object]) -> float:
        """`_least_seconds` on the device, once a GPU has captured what it repeats."""
        if self._device.type != "cuda":
            return _least_seconds(work)
        for _ in range(EAGER_STEPS + 1):
            work()

        def work_and_wait() -> None:
            for _ in range(BATCHES_AT_ONCE):
                work()
            torch.cuda.synchronize(self._device)

        return _least_seconds(work_and_wait) / BATCHES_AT_ONCE

    def _once(self, kind: object, measure: Callable[[], float]) -> float:
        if kind not in self._known:
            self._known[kind] = measure()
        return self._known[kind]


def _least_seconds(work: Callable[[], object]) -> float:
    """The shortest time that `work` takes, of as many tries as fit, the first left out where there is a second."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - started < SECONDS_OF_A_TRY:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])
