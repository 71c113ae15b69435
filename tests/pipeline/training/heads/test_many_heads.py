"""Heads trained at once are those trained alone, each with its own rate, decay, dropout and seed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.recipe.training_sections import TrainingOptions
from pipeline.system.errors import UserError
from pipeline.training.heads.many_heads import HeadSetting, SharedSettings, count_at_once, train_heads
from pipeline.training.heads.stacked_heads import HeadShape
from tests.pipeline.stored_classes import CPU, shape, stored_batches, trained_alone

BAG = [
    HeadSetting(seed=0, lr=3e-3, weight_decay=0.1, dropout=0.5, label_smoothing=0.1, stored_epochs=3),
    HeadSetting(seed=4, lr=1e-2, stored_epochs=2),
    HeadSetting(seed=0, lr=3e-3, weight_decay=0.1, stored_epochs=3),
    HeadSetting(seed=0, lr=2e-4, weight_decay=0.9, dropout=0.5, stored_epochs=3),
    HeadSetting(seed=7, lr=5e-2, dropout=0.25, label_smoothing=0.3, stored_epochs=2),
    HeadSetting(seed=4, lr=1e-3, weight_decay=0.01, dropout=0.5, stored_epochs=3),
]


@pytest.mark.parametrize("heads_at_once", [None, 2])
@pytest.mark.parametrize("hidden", [0, 8, 32])  # 8 is smaller than a batch, 32 is larger: two ways to compute
def test_each_head_is_what_it_is_when_trained_alone(hidden, heads_at_once):
    batches = stored_batches()
    trained = train_heads(BAG, shape(hidden), *batches, heads_at_once=heads_at_once, keep_states=True)
    for one, together in zip(BAG, trained, strict=True):
        head, records = trained_alone(one, hidden, batches)
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
    (together,) = train_heads(BAG[:1], shape(0), *batches)
    _, records = trained_alone(BAG[0], 0, batches)
    assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-5)


def test_what_is_trained_beside_a_head_makes_no_difference_to_it():
    batches = stored_batches()
    alone = [train_heads([one], shape(8), *batches)[0].train_losses for one in BAG]
    together = [head.train_losses for head in train_heads(BAG[::-1], shape(8), *batches)][::-1]
    assert together == [pytest.approx(losses, rel=1e-5) for losses in alone]


@pytest.mark.parametrize("hidden", [0, 8, 32])
def test_a_head_that_diverges_is_marked_and_spoils_no_other(hidden):
    batches = stored_batches()
    wild = HeadSetting(seed=4, lr=1e38, dropout=0.5, stored_epochs=2)
    with pytest.raises(UserError, match="The loss is"):
        trained_alone(wild, hidden, batches)
    *sound, diverged = train_heads([BAG[1], BAG[5], wild], shape(hidden), *batches)
    assert diverged.diverged
    assert not math.isfinite(diverged.train_losses[-1])
    for one, together in zip((BAG[1], BAG[5]), sound, strict=True):
        _, records = trained_alone(one, hidden, batches)
        assert not together.diverged
        assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-5)


def test_the_random_state_stays_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_heads(BAG, shape(8), *stored_batches())
    assert torch.equal(torch.rand(3), expected)


def test_heads_of_other_seeds_and_settings_differ():
    trained = train_heads(BAG, shape(0), *stored_batches())
    assert len({head.train_losses[0] for head in trained}) == len(BAG)


def test_the_size_of_the_validation_batches_makes_no_difference():
    train, valid = stored_batches(valid=30)
    (in_one,) = train_heads(BAG[:1], shape(0), train, replace(valid, batch_size=30))
    (in_chunks,) = train_heads(BAG[:1], shape(0), train, replace(valid, batch_size=7))
    assert in_one.valid[0].loss == pytest.approx(in_chunks.valid[0].loss)
    assert in_one.valid[0].accuracy == in_chunks.valid[0].accuracy


def test_memory_allows_hundreds_of_linear_heads_and_some_large_ones_but_always_one():
    assert count_at_once(HeadShape(2560, 2, 0), 32, CPU) >= 256
    assert 2 <= count_at_once(HeadShape(2560, 2, 512), 32, CPU) < 32
    assert count_at_once(HeadShape(100_000, 1000, 8192), 32, CPU) == 1


@pytest.mark.parametrize("hidden", [0, 8])
def test_each_head_learns_soft_labels_as_when_trained_alone(hidden):
    train, valid = stored_batches()
    random = torch.Generator().manual_seed(0)
    shares = torch.rand(len(train.targets), 3, generator=random).softmax(1).numpy()
    batches = replace(train, shares=shares), valid
    trained = train_heads(BAG, shape(hidden), *batches)
    hard = train_heads(BAG, shape(hidden), train, valid)
    for one, together, other in zip(BAG, trained, hard, strict=True):
        _, records = trained_alone(one, hidden, batches)
        assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-5)
        assert [valid.loss for valid in together.valid] == pytest.approx([one.valid_loss for one in records], rel=1e-5)
        assert together.train_losses != other.train_losses


@pytest.mark.parametrize("hidden", [0, 8])
@pytest.mark.parametrize(
    ("warm_up", "options"),
    [
        (0.4, {}),
        (0.0, {"momentum": "cycled"}),
        (0.0, {"optimizer": "sgd", "clip_norm": 0.02}),
        (0.0, {"accumulate": 2}),
        (0.0, {"optimizer": "sgd"}),
        (0.4, {"optimizer": "sgd", "momentum": "cycled", "clip_norm": 0.2, "accumulate": 3}),
    ],
)
def test_each_head_is_trained_by_what_is_shared_as_when_trained_alone(warm_up, options, hidden):
    batches, shared = stored_batches(), SharedSettings(warm_up, TrainingOptions(**options))
    trained = train_heads(BAG, shape(hidden), *batches, shared)
    for one, together in zip(BAG, trained, strict=True):
        _, records = trained_alone(one, hidden, batches, shared)
        assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-4)
        assert [valid.loss for valid in together.valid] == pytest.approx([one.valid_loss for one in records], rel=1e-4)
    as_ever = train_heads(BAG, shape(hidden), *batches)
    pairs = [(one.valid[-1].loss, other.valid[-1].loss) for one, other in zip(trained, as_ever, strict=True)]
    assert max(abs(one / other - 1) for one, other in pairs) > 1e-3


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}])
@pytest.mark.parametrize("is_balanced", [False, True])
def test_each_head_counts_pictures_by_their_weights_and_draws_rare_classes_as_when_trained_alone(is_balanced, options):
    train, valid = stored_batches()
    weights = None if is_balanced else np.random.default_rng(1).random(len(train.targets)).astype(np.float32)
    batches = replace(train, weights=weights, is_balanced=is_balanced), valid
    shared = SharedSettings(0.0, TrainingOptions(**options))
    for one, together in zip(BAG, train_heads(BAG, shape(8), *batches, shared), strict=True):
        _, records = trained_alone(one, 8, batches, shared)
        assert together.train_losses == pytest.approx([record.train_loss for record in records], rel=1e-4)
        assert [valid.loss for valid in together.valid] == pytest.approx([one.valid_loss for one in records], rel=1e-4)


def test_a_head_stops_early_by_itself_while_others_go_on():
    batches, options = stored_batches(), TrainingOptions(early_stop_epochs=2, keep="best_loss")
    settings = [HeadSetting(0.05, seed=4, stored_epochs=15), HeadSetting(1e-4, seed=4, stored_epochs=15)]
    stopped, whole = train_heads(settings, shape(8), *batches, SharedSettings(0.0, options))
    (as_ever, _) = train_heads(settings, shape(8), *batches)
    assert len(stopped.valid) == len(stopped.train_losses) == stopped.kept + 1 + 2 < 15
    assert stopped.valid == as_ever.valid[: len(stopped.valid)]
    assert stopped.valid[stopped.kept].loss == min(valid.loss for valid in stopped.valid)
    assert len(whole.valid) == 15
