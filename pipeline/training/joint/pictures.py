"""A phase of training on pictures, by what can be sent to other processes, so that all of them build the same one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pipeline.data.augment import Augmentation
from pipeline.data.decode import Pixels
from pipeline.data.joint.shared_pixels import Source, source_of
from pipeline.data.loader import Split, pixel_batches
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.engine.frozen_part import training_module
from pipeline.models.network import Network
from pipeline.ranks.team import deal
from pipeline.recipe.fields import Frozen
from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.device import choose_device
from pipeline.training.fit import Phase
from pipeline.training.optim import thaw


@dataclass(frozen=True)
class PicturePhase:
    """What a phase on pictures takes besides the network and the pictures: the rows of `split`, varied by
    `augmentation` in an order that follows from `seed`; these layer groups `frozen`, the others trained by `rates`; the
    kind of device; what a Phase is told of itself, in `settings`; and how often the network skips blocks."""

    split: Split
    augmentation: Augmentation
    batch_size: int
    seed: int
    frozen: Frozen
    rates: Mapping[str, float]
    weight_decay: float
    options: TrainingOptions
    device: str
    cycle_epochs: list[int] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)
    drop_path: float = 0.0

    def build(self, network: Network, checkpoint: Checkpoint, pixels: Pixels) -> Phase:
        """The phase that trains the network of `checkpoint`, or of it what is not frozen; of each batch this process
        gets its share."""
        device = choose_device(self.device)
        train, valid = pixel_batches(pixels, self.split, self.augmentation, self.batch_size, device, self.seed)
        train = train.dealt_by(deal(self.options.accumulate))
        passes = sum(self.cycle_epochs) * len(self.split.train)
        network.move_to(device, passes * checkpoint.image_px**2)
        optimizer = thaw(network, self.frozen, self.rates, self.weight_decay, self.options)
        module: nn.Module = network
        if not self.settings.get("is_compiled"):
            module = training_module(network, checkpoint, self.frozen, pixels, passes)
        more = {"cycle_epochs": self.cycle_epochs, "options": self.options, **self.settings}
        return Phase(module, optimizer, train, valid, **more, origin=Origin(self, checkpoint, source_of(pixels)))


@dataclass(frozen=True)
class Origin:
    """What a helper builds a phase from: all but the weights."""

    phase: PicturePhase
    checkpoint: Checkpoint
    source: Source

    def build(self) -> tuple[Network, Phase]:
        """A network of fresh weights, and the phase on it; all processes open its pixels together."""
        network = build_network(self.checkpoint, self.phase.drop_path)
        return network, self.phase.build(network, self.checkpoint, self.source.open())
