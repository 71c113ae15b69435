"""Many heads at once are each what they are alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.many_heads import HeadSetting, count_at_once, train_heads
from tests.pipeline.stored_classes import CLASSES, CPU, stored_batches, trained_alone

BAG = [
    HeadSetting(seed=0, lr=3e-3, weight_decay=0.1, dropout=0.5, label_smoothing=0.1),
    HeadSetting(seed=4, lr=1e-2),
    HeadSetting(seed=0, lr=3e-3, weight_decay=0.1),
    HeadSetting(seed=0, lr=2e-4, weight_decay=0.9, dropout=0.5),
    HeadSetting(seed=7, lr=5e-2, dropout=0.25, label_smoothing=0.3),
    HeadSetting(seed=4, lr=1e-3, weight_decay=0.01, dropout=0.5),
]
CYCLES = [1, 2]


@pytest.mark.parametrize("heads_at_once", [None, 2])
@pytest.mark.parametrize("hidden", [0, 8, 32])  # 8 is smaller than a batch, 32 is larger: two ways to compute
def test_each_head_is_what_it_is_when_trained_alone(hidden, heads_at_once):
    batches = stored_batches()
    trained = train_heads(BAG, CLASSES, hidden, *batches, CYCLES, heads_at_once=heads_at_once, keep_states=True)
    for one, together in zip(BAG, trained, strict=True):
        head, records = trained_alone(one, hidden, batches, CYCLES)
        assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-5)
        assert [valid.loss for valid in together.valid] == pytest.approx([one.valid_loss for one in records], rel=1e-5)
        assert [valid.accuracy for valid in together.valid] == [one.valid_accuracy for one in records]
        assert [valid.macro_f1 for valid in together.valid] == pytest.approx([one.valid_macro_f1 for one in records])
        assert not together.diverged
        for name, tensor in together.state.items():
            torch.testing.assert_close(tensor, head.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert together.state.keys() == {name for name in head.state_dict() if "num_batches" not in name}


def test_fewer_pictures_than_a_batch_are_one_batch_as_they_are_alone():
    batches = stored_batches(train=9)
    (together,) = train_heads(BAG[:1], CLASSES, 0, *batches, [2])
    _, records = trained_alone(BAG[0], 0, batches, [2])
    assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-5)


def test_what_is_trained_beside_a_head_makes_no_difference_to_it():
    batches = stored_batches()
    alone = [train_heads([one], CLASSES, 8, *batches, [2])[0].train_losses for one in BAG]
    together = [head.train_losses for head in train_heads(BAG[::-1], CLASSES, 8, *batches, [2])][::-1]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("hidden", [0, 8, 32])
def test_a_head_that_diverges_is_marked_and_spoils_no_other(hidden):
    batches = stored_batches()
    wild = HeadSetting(seed=4, lr=1e38, dropout=0.5)
    with pytest.raises(UserError, match="The loss is"):
        trained_alone(wild, hidden, batches, [2])
    *sound, diverged = train_heads([BAG[1], BAG[5], wild], CLASSES, hidden, *batches, [2])
    assert diverged.diverged
    assert not math.isfinite(diverged.train_losses[-1])
    for one, together in zip((BAG[1], BAG[5]), sound, strict=True):
        _, records = trained_alone(one, hidden, batches, [2])
        assert not together.diverged
        assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-5)


def test_the_random_state_stays_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_heads(BAG, CLASSES, 8, *stored_batches(), [1])
    assert torch.equal(torch.rand(3), expected)


def test_heads_of_other_seeds_and_settings_differ():
    trained = train_heads(BAG, CLASSES, 0, *stored_batches(), [1])
    assert len({head.train_losses[0] for head in trained}) == len(BAG)


def test_the_size_of_the_batches_that_judge_makes_no_difference():
    train, valid = stored_batches(valid=30)
    (in_one,) = train_heads(BAG[:1], CLASSES, 0, train, replace(valid, batch_size=30), [1])
    (in_parts,) = train_heads(BAG[:1], CLASSES, 0, train, replace(valid, batch_size=7), [1])
    assert in_one.valid[0].loss == pytest.approx(in_parts.valid[0].loss)
    assert in_one.valid[0].accuracy == in_parts.valid[0].accuracy


def test_memory_allows_hundreds_of_linear_heads_and_some_large_ones_but_always_one():
    assert count_at_once(2560, 2, 0, 32, CPU) >= 256
    assert 2 <= count_at_once(2560, 2, 512, 32, CPU) < 32
    assert count_at_once(100_000, 1000, 8192, 32, CPU) == 1
