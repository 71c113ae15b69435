"""Which pictures a stage reads: those of its split and fraction, as the recipe fits them; the test split in evaluate
alone."""

import numpy as np
import pandas as pd
import pytest

from tests.stages.chains import AUGMENTED
from tests.stages.predicting import squished_pictures

TRAINED = ("lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize")


def test_pictures_are_split_by_the_fractions_of_the_recipe(chain):
    per_class = {name: len(chain.rows(name)) / 3 for name in ("train", "valid", "test")}
    assert per_class == {"train": 12, "valid": 5, "test": 7}  # of 24: 0.2 validate, 0.3 test


@pytest.mark.parametrize("size_px", [32, 40])
def test_pictures_are_read_as_the_recipe_fits_them_at_the_size_of_each_stage(chain, size_px):
    stored = np.load(chain["precompute"].files / "pixels" / str(size_px) / "pixels.npy")
    np.testing.assert_array_equal(stored, squished_pictures(chain, size_px))


@pytest.mark.parametrize("name", TRAINED)
def test_a_stage_trains_on_training_rows_and_validates_on_plain_validation_rows_and_reads_no_test_row(chain, name):
    did = chain[name].did
    assert did.training
    assert all(set(read.rows) <= chain.rows("train") for read in did.training)
    assert all(set(read.rows) == chain.rows("valid") for read in did.validation)
    assert all(read.augmentation is None for read in did.validation)
    assert bool(did.validation) == (not name.startswith("lr_find"))


@pytest.mark.parametrize(("name", "per_class"), zip(TRAINED, (10, 10, 4, 4, 11), strict=True))
def test_a_stage_trains_on_its_fraction_of_every_class_rounded_up(chain, name, per_class):
    targets = chain.manifest.targets
    for read in chain[name].did.training:
        assert np.bincount(targets[list(read.rows)]).tolist() == [per_class] * 3


@pytest.mark.parametrize("name", TRAINED)
def test_epochs_differ_in_their_order_by_the_seed_of_the_recipe(chain, name):
    assert {read.seed for read in chain[name].did.training} == {3}


@pytest.mark.parametrize("name", ["lr_find_unfrozen", "fine_tune", "resize"])
def test_a_network_that_is_unfrozen_trains_on_pictures_that_are_all_augmented(chain, name):
    assert {read.augmentation for read in chain[name].did.training} == {AUGMENTED}
    assert {len(step.shape) for step in chain[name].did.steps} == {4}


def test_evaluate_predicts_every_split_once_and_the_test_split_again_with_the_fixed_views(chain):
    predictions = chain["evaluate"].did.predictions
    plain = [one.rows for one in predictions if one.views is None]
    assert [set(rows) for rows in plain] == [chain.rows(name) for name in ("valid", "train", "test")]
    (varied,) = [one for one in predictions if one.views is not None]
    assert set(varied.rows) == chain.rows("test")
    assert varied.views.shape == (2, 2, 3), "the first of three views is the picture as it is"


def test_evaluate_judges_each_training_picture_by_a_head_that_never_saw_it_and_lists_the_doubtful(chain):
    did, files, train, valid = chain["evaluate"].did, chain["evaluate"].files, chain.rows("train"), chain.rows("valid")
    known = {read.seed: set(read.rows) for read in did.training}
    assert all(valid < rows < train | valid for rows in known.values())
    assert [set(read.rows) for read in did.validation] == [train - rows for rows in known.values()]
    assert sorted(row for read in did.validation for row in read.rows) == sorted(train)
    found = pd.read_csv(files / "training_label_errors.csv")
    assert set(found["row"]) <= train
    assert f"{len(found)} of the training labels, by cross-validation" in (files / "report.md").read_text()
