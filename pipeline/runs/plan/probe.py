"""How fast this machine does what stages do: each kind of work is tried for half a second at most on two cores.

Networks have random weights and images are noise there, since neither changes how long a step takes.
"""

import time
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.augment import augment, augmentation
from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.manifest import Manifest
from pipeline.data.nvjpeg import choose_decoder
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import cut_network
from pipeline.models.engine.frozen_part import CUTS, TrainedAbove
from pipeline.models.engine.graph import Part, below, whole
from pipeline.models.engine.passes import open_session, pays
from pipeline.models.engine.session import Session
from pipeline.models.layer_groups import training_mode
from pipeline.models.network import MANY_PIXELS, Network
from pipeline.recipe.fields import GROUPS, Frozen
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan.work import Training
from pipeline.system.device import choose_device, mixed_precision, pictures_per_pass
from pipeline.system.errors import UserError
from pipeline.system.machine import usable_cores
from pipeline.training.optim import head_optimizer, thaw
from pipeline.training.step import EAGER_STEPS, steps_of

# On a CPU so many pixels are tried at once, of pictures as large as they will be.
TRIED_PIXELS = 16 * 128**2
# Of a picture this small nothing takes long but what every step takes.
SMALL_PX = 64
# Batches between which a GPU is not waited for.
BATCHES_AT_ONCE = 5
SECONDS_OF_A_TRY = 0.05
# A loop that tells how fast a core is, and its seconds on the machine that overheads were measured on; so long that
# other work interrupts it as often as it will interrupt the stages.
LOOPS, REFERENCE_SECONDS = 1_500_000, 0.05
_NO_RATES = dict.fromkeys(GROUPS, 0.0)


class Probe:
    """Speeds for a recipe on the pictures of a manifest; each is measured once."""

    def __init__(self, recipe: Recipe, manifest: Manifest) -> None:
        self._recipe, self._manifest = recipe, manifest
        self._device = choose_device(recipe.device)
        self._known: dict[object, float] = {}
        self._networks: dict[tuple[int, bool], Network] = {}

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
        by_engine, is_long = pays(passes, image_px, self._device), self._is_long(passes, image_px)
        kind = "passing", image_px, by_engine, is_long
        return self._once(kind, lambda: self._pass(self._whole(*kind[1:]), image_px))

    def validating(self, training: Training) -> float:
        """Seconds for a picture to go through the network between the steps of `training`."""
        trained = self._tried(training)
        return self._once(("validating", *trained), lambda: self._pass(self._trained(*trained), training.image_px))

    def step(self, training: Training) -> float:
        """Seconds of a step of `training`: what it takes however small its batch is, and what its pictures take."""
        tried = self._tried(training)
        count = min(self._pictures(training.image_px), training.batch_size)
        if self._device.type == "cuda" or count == training.batch_size:
            return self._once(("step", *tried, training.batch_size), lambda: self._step(*tried, training.batch_size))
        some = self._once(("step", *tried, count), lambda: self._step(*tried, count))
        least = min(self._once(("least step", training.frozen), lambda: self._least_step(training.frozen)), some)
        return least + (some - least) * training.batch_size / count

    def head_step(self, batch_size: int) -> float:
        """Seconds of a step of the head on stored activations."""

        def measure() -> float:
            network = self._network(self._recipe.precompute.image_px, False)
            optimizer = head_optimizer(network.head, 0.0, 0.0, self._recipe.training)
            step = steps_of(network.head, optimizer, options=self._recipe.training)
            inputs = torch.rand(batch_size, network.width, device=self._device)
            training_mode(network.head)
            return self._least(lambda: step(inputs, self._targets(batch_size), None))

        return self._once(("head", batch_size), measure)

    def _tried(self, training: Training) -> tuple[Frozen, int, bool, bool]:
        """What is frozen, the size of pictures, and whether ONNX Runtime computes what is frozen, and it is long."""
        passes, image_px = training.steps * training.batch_size, training.image_px
        by_engine = training.frozen != "none" and pays(passes, image_px, self._device)
        return training.frozen, image_px, by_engine, self._is_long(passes, image_px)

    def _is_long(self, passes: int, image_px: int) -> bool:
        """Whether a GPU has the network laid out for so many passes."""
        return self._device.type == "cuda" and passes * image_px**2 >= MANY_PIXELS

    def _pictures(self, image_px: int) -> int:
        """How many pictures are tried at once."""
        if self._device.type == "cuda":
            return pictures_per_pass(1, image_px, self._device)
        return max(TRIED_PIXELS // image_px**2, torch.get_num_threads())

    def _network(self, image_px: int, is_long: bool) -> Network:
        """The network for pictures of this size, in a long work or a short one."""
        kind = image_px, is_long
        if kind not in self._networks:
            network = build_network(self._checkpoint(image_px))
            self._networks[kind] = network.move_to(self._device, MANY_PIXELS if is_long else 0)
        return self._networks[kind]

    def _checkpoint(self, image_px: int) -> Checkpoint:
        recipe, manifest = self._recipe, self._manifest
        built = recipe.model.backbone, manifest.classes, recipe.head.hidden, recipe.head.dropout
        return Checkpoint(*built, image_px, recipe.data.fit, manifest.is_grey)

    def _whole(self, image_px: int, by_engine: bool, is_long: bool) -> Callable[[Tensor], object]:
        """What computes the network's logits for pictures of this size."""
        network = self._network(image_px, is_long)
        session = self._session(whole(network), image_px) if by_engine else None
        return session.run if session else network

    def _trained(self, frozen: Frozen, image_px: int, by_engine: bool, is_long: bool) -> nn.Module:
        """What is trained on pictures of this size, and validated."""
        network = self._network(image_px, is_long)
        if not by_engine:
            return network
        try:
            halves = cut_network(network, CUTS[frozen], image_px)
        except UserError:  # it cannot be cut
            return network
        session = self._session(below(network, halves), image_px)
        return TrainedAbove(lambda images: session.run(images)[0], halves.above) if session else network

    def _session(self, part: Part, image_px: int) -> Session | None:
        """What ONNX Runtime computes this part by, whose graph stays in the cache for the stage; None if it cannot."""
        part.network.eval()
        try:
            return open_session(part, self._checkpoint(image_px))
        except Exception:  # torch's exporter and ONNX Runtime have dozens of classes of errors
            return None

    def _pass(self, compute: Callable[[Tensor], object], image_px: int) -> float:
        """Seconds for a picture to go through `compute`."""
        count = self._pictures(image_px)
        images = self._images(image_px, count)
        if isinstance(compute, nn.Module):
            compute.eval()

        def forward() -> None:
            with torch.no_grad(), mixed_precision(self._device):
                compute(images)

        return self._least(forward) / count

    def _step(self, frozen: Frozen, image_px: int, by_engine: bool, is_long: bool, count: int) -> float:
        """Seconds of a step on so many pictures, with their augmentation."""
        network, images, targets = self._network(image_px, is_long), self._images(image_px, count), self._targets(count)
        varied = augmentation(**self._recipe.augment.model_dump())
        optimizer = thaw(network, frozen, _NO_RATES, 0.0, self._recipe.training)
        module = self._trained(frozen, image_px, by_engine, is_long)
        step = steps_of(module, optimizer, options=self._recipe.training)
        training_mode(module, "all")
        generator = torch.Generator()
        return self._least(lambda: step(augment(images, varied, generator), targets, None))

    def _least_step(self, frozen: Frozen) -> float:
        """Seconds of a step on next to nothing, which go to its many calls and to the optimizer; 0 where the network
        takes no such pictures."""
        try:
            return self._step(frozen, SMALL_PX, False, False, 1)
        except (UserError, RuntimeError, ValueError, AssertionError):  # timm's networks have no error of their own
            return 0.0

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
