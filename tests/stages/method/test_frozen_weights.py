"""Which weights move, and which statistics of BatchNorm: what is frozen stays as it is, and all else is trained."""

import pytest

ALL = {"early", "late", "head"}


def test_while_the_head_is_trained_no_tensor_of_the_body_moves(chain):
    moved = chain["train_head"].moved()
    assert moved
    assert not [name for name in moved if not name.startswith("head.")]


def test_while_the_late_group_is_trained_on_stored_feature_maps_the_early_one_stays_frozen(late_chain):
    assert late_chain["train_head"].moved_groups() == {"late", "head"}


def test_fine_tuning_moves_every_layer_group(chain):
    assert chain["fine_tune"].moved_groups() == ALL


def test_resizing_leaves_the_group_that_the_recipe_freezes_as_it_is(chain, late_chain):
    assert chain["resize"].moved_groups() == {"late", "head"}
    assert late_chain["resize"].moved_groups() == ALL


@pytest.mark.parametrize("name", ["fine_tune", "resize"])
def test_once_the_head_is_trained_its_batchnorm_learns_no_statistics_of_augmented_pictures(chain, name):
    assert chain["train_head"].moved_statistics() == {"head"}
    assert chain[name].moved_statistics() == set()
    assert not any(step.body_learns_statistics for step in chain[name].did.steps)


@pytest.mark.parametrize(("name", "groups"), [("train_head", {"late", "head"}), ("fine_tune", ALL), ("resize", ALL)])
def test_batchnorm_learns_new_statistics_where_the_recipe_says_batch_but_for_what_is_frozen(late_chain, name, groups):
    assert late_chain[name].moved_statistics() == groups


def test_batchnorm_learns_statistics_in_the_finder_where_fine_tune_does(chain, late_chain):
    assert not any(step.body_learns_statistics for step in chain["lr_find_unfrozen"].did.steps)
    assert all(step.body_learns_statistics for step in late_chain["lr_find_unfrozen"].did.steps), "it says batch"
