"""What is trained on stored activations: those of plain pictures, or of views in rows of their own, and never of a
store that is half computed; what is augmented on the fly goes through the whole network."""

import numpy as np
import pytest
import torch

from pipeline.cache.maintenance import list_entries
from pipeline.data.augment import Augmentation
from pipeline.models import activations
from pipeline.models.checkpoint import load_checkpoint
from stages import precompute
from stages.work import precompute as precompute_work
from tests.drawn_pictures import PICTURES_PER_CLASS
from tests.stages.chains import AUGMENTED, run_stage_on


class Stopped(Exception):
    """Ends a stage in the middle."""


def activation_stores() -> set[str]:
    return {entry.path.name for entry in list_entries() if entry.kind == "activations"}


def test_precompute_stores_the_frozen_bodys_activations_of_every_plain_picture(chain):
    first = chain["precompute"]
    stored = np.load(first.files / "activations" / "activations.npy")
    network, checkpoint = load_checkpoint(first.files / "checkpoint")
    pixels = np.load(first.files / "pixels" / "32" / "pixels.npy")
    with torch.no_grad():
        expected = network.eval().activations(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert stored.dtype == np.float32
    assert stored.shape == (3 * PICTURES_PER_CLASS, network.width)
    assert (checkpoint.image_px, checkpoint.fit) == (32, "squish")
    np.testing.assert_allclose(stored, expected, atol=1e-5)
    assert not first.did.steps


def test_a_store_that_is_half_computed_is_never_used(chain, on_chain, monkeypatch):
    recipe = chain.other_recipe(precompute__image_px=24, reuse="never")
    before, write = activation_stores(), activations.write_activations

    def write_half(stored, network, pixels, rows, *more, **named):
        write(stored, network, pixels, rows[: len(rows) // 2], *more, **named)
        raise Stopped

    monkeypatch.setattr(activations, "write_activations", write_half)
    with pytest.raises(Stopped):
        precompute.run(recipe)
    assert activation_stores() == before
    monkeypatch.setattr(activations, "write_activations", write)
    stored = np.load(run_stage_on("precompute", recipe).files / "activations" / "activations.npy")
    assert len(stored) == 3 * PICTURES_PER_CLASS
    assert (stored != 0).any(axis=1).all()


def test_the_finder_tests_the_head_on_stored_activations_of_plain_pictures(chain):
    assert {read.augmentation for read in chain["lr_find"].did.training} == {None}
    assert {len(step.shape) for step in chain["lr_find"].did.steps} == {2}


def test_the_head_trains_on_stored_activations_of_plain_pictures_and_then_on_augmented_pictures(chain):
    did = chain["train_head"].did
    assert [read.augmentation for read in did.training] == [None] * 2 + [AUGMENTED] * 6
    assert [len(step.shape) for step in did.steps] == [2] * 10 + [4] * 30
    assert [step.shape[1:] for step in did.steps[10:]] == [(3, 32, 32)] * 30, "pictures, through the whole network"


def test_views_are_rows_of_their_own_beside_those_of_the_pictures_as_they_are(late_chain):
    did = late_chain["train_head"].did
    assert len(did.training[0].rows) == 3 * 30  # each of 30 training pictures as it is, and its two views
    assert did.training[0].augmentation is None
    assert len(did.steps[0].shape) == 4
    assert did.steps[0].shape[1] != 3, "feature maps, not pictures"


def test_views_are_of_training_pictures_alone_varied_by_the_recipe_and_its_seed(chain, on_chain, monkeypatch):
    def stop(rows, count: int, augmentation: Augmentation, seed: int):
        raise Stopped(rows.tolist(), count, augmentation, seed)

    monkeypatch.setattr(precompute_work, "Views", stop)
    with pytest.raises(Stopped) as given:
        precompute.run(chain.other_recipe(precompute__views=2))
    assert given.value.args == (chain.manifest.rows("train").tolist(), 2, AUGMENTED, 3)
