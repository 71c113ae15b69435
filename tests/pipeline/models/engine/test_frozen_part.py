import numpy as np
import pytest
import torch

from pipeline.data.augment import Augmentation
from pipeline.data.loader import Split, pixel_batches
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.engine import passes
from pipeline.models.engine.frozen_part import TrainedAbove, training_module
from pipeline.models.engine.session import Session
from pipeline.models.layer_groups import layer_groups
from pipeline.models.network import Network
from pipeline.training.fit import Phase, TrainingProgress, fit
from pipeline.training.optim import thaw
from pipeline.training.records import EpochRecord

FACTS = Checkpoint("test_resnet", ["cat", "dog"], 8, 0.5, 32, "crop", False)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
SPLIT = Split(np.arange(16), np.arange(16, 20), np.arange(20) % 2)
RATES = {"early": 1e-3, "late": 1e-3, "head": 1e-3}
MANY = -(-passes.LEAST_PIXELS // 32**2)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def training(frozen, count: int = MANY) -> tuple[Network, Phase]:
    """A fresh network, and two epochs of training it with augmentation."""
    torch.manual_seed(0)
    network = build_network(FACTS)
    batches = pixel_batches(PIXELS, SPLIT, Augmentation("all", 10, 1.1, 0.9, 0.2, 0.7), 4, torch.device("cpu"), 0)
    optimizer = thaw(network, frozen, RATES, 0.01)
    module = training_module(network, FACTS, frozen, PIXELS, count)
    return network, Phase(module, optimizer, *batches, [1, 1], fixed_statistics="all")


def losses(records) -> list[float]:
    return [step.loss for record in records for step in record.steps] + [record.valid_loss for record in records]


@pytest.mark.parametrize("frozen", ["early", "body"])
def test_the_frozen_part_is_computed_by_onnx_runtime_and_training_goes_as_it_would(frozen, monkeypatch):
    plain, phase = training(frozen, MANY - 1)
    assert phase.module is plain
    expected = list(fit(phase))
    counts = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: counts.append(len(images)) or run(self, images))
    network, phase = training(frozen)
    assert isinstance(phase.module, TrainedAbove)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    counts.clear()
    np.testing.assert_allclose(losses(list(fit(phase))), losses(expected), rtol=1e-3)
    assert sum(counts) == 2 * (16 + 4)
    groups = layer_groups(network)
    kept = set(groups["early"]) | (set(groups["late"]) if frozen == "body" else set())
    state = network.state_dict()
    assert {name for name in before if not torch.equal(state[name], before[name])} == {
        name for names in groups.values() for name in names if name not in kept
    }


def test_a_training_that_resumes_ends_with_the_same_bits():
    whole, phase = training("early")
    expected = list(fit(phase))
    stopped, phase = training("early")
    moments = fit(phase, pauses=lambda: True)
    records, progress = [], None
    for _ in range(7):  # four steps and the record of an epoch, then two steps
        progress = next(moments)
        records += [progress] if isinstance(progress, EpochRecord) else []
    assert isinstance(progress, TrainingProgress)
    network, again = training("early")
    network.load_state_dict(stopped.state_dict())
    again.optimizer.load_state_dict(phase.optimizer.state_dict())
    records += list(fit(again, start=progress))
    assert losses(records) == losses(expected)
    state = network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole.state_dict().items())


def test_a_network_that_is_not_frozen_or_cannot_be_cut_is_trained_itself(monkeypatch):
    network, phase = training("none")
    assert phase.module is network
    monkeypatch.setattr(passes, "LEAST_PIXELS", 0)
    facts = Checkpoint("eva02_tiny_patch14_224", ["cat", "dog"], 0, 0.5, 28, "crop", False)
    network = build_network(facts)
    assert training_module(network, facts, "early", PIXELS, 1) is network
