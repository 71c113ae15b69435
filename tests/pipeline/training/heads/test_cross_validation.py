"""Training pictures are judged by heads that never saw them, so that wrong labels stand out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.manifest import Manifest
from pipeline.evaluation.label_errors import training_label_errors
from pipeline.training.heads import cross_validation
from pipeline.training.heads.cross_validation import cross_validate
from tests.pipeline.stored_classes import CPU

CLASSES = ["ant", "bee", "cow"]
SPLITS = ["train"] * 6 + ["valid", "test", "dropped"]
TRUE = np.arange(108) // 9 % 3
WRONG = [3, 49, 94]


def manifest_of(groups: list[str] | None = None, wrong: list[int] | None = None) -> Manifest:
    """108 pictures, of which 72 are trained on; the labels of those in `wrong` are other ones."""
    labels = TRUE.copy()
    labels[wrong or []] = (labels[wrong or []] + 1) % 3
    table = pd.DataFrame(
        {
            "path": [f"{row}.png" for row in range(len(TRUE))],
            "label": np.array(CLASSES)[labels],
            "split": np.resize(SPLITS, len(TRUE)),
            "hash": [f"{row:064x}" for row in range(len(TRUE))],
            "group": groups or "",
            "weight": 1.0,
        }
    )
    return Manifest("farm", Path("/nowhere"), CLASSES, table, pd.DataFrame(columns=["path", "reason"]))


def stored() -> np.ndarray:
    """Activations with the true classes in them."""
    draw = np.random.default_rng(0)
    return (draw.normal(size=(3, 40))[TRUE] + draw.normal(size=(len(TRUE), 40))).astype(np.float16)


def judged(manifest: Manifest, folds: int = 4, seed: int = 0) -> np.ndarray:
    return cross_validate(stored(), manifest, folds, seed, CPU)


@pytest.fixture
def heads(monkeypatch):
    """The batches that each head is given, while heads learn nothing but their own number, counted from 1: the log of
    how much likelier they take the first class to be."""
    given = []

    def train_stack(stack, settings, by_seed, shared, tick):
        for head, batches in enumerate(by_seed):
            given.append(batches)
            stack.parameters["2.bias"].data[head, 0] = len(given)
        yield [0.0] * len(settings)

    monkeypatch.setattr(cross_validation, "train_stack", train_stack)
    return given


def numbers(probabilities: np.ndarray) -> np.ndarray:
    """Which of the `heads` each picture is judged by."""
    return np.log(probabilities[:, 0] / probabilities[:, 1]).round().astype(int)


@pytest.mark.parametrize("at_once", [1, 3, 9])
def test_no_head_judges_what_it_was_trained_on_and_none_sees_test_or_dropped_pictures(heads, monkeypatch, at_once):
    monkeypatch.setattr(cross_validation, "count_at_once", lambda *shape: at_once)
    manifest = manifest_of()
    judges = numbers(judged(manifest))
    train, valid = set(manifest.rows("train").tolist()), set(manifest.rows("valid").tolist())
    assert len(heads) == 4
    for number, batches in enumerate(heads, 1):
        own = set(manifest.rows("train")[judges == number].tolist())
        assert len(own) == 18
        assert set(batches.rows.tolist()) == (train - own) | valid


def test_a_group_and_the_copies_of_its_pictures_are_judged_by_one_head(heads):
    groups = [f"herd {row // 10}" for row in range(len(TRUE))]
    manifest = manifest_of(groups)
    manifest.table.loc[[3, 40], "hash"] = "the same"
    by_group = pd.Series(numbers(judged(manifest))).groupby(np.array(groups)[manifest.rows("train")]).unique()
    assert all(len(judges) == 1 for judges in by_group)
    assert by_group["herd 0"] == by_group["herd 4"]
    assert len(set(np.concatenate(by_group.to_list()))) == 4


def test_pictures_count_by_their_weights_and_soft_labels_are_learned_as_they_are(heads):
    manifest = manifest_of()
    judged(manifest)
    assert heads[0].weights is heads[0].shares is None
    manifest.table["weight"] = np.linspace(1, 2, len(TRUE))
    shares = np.full((len(TRUE), 3), 0.25) + np.eye(3)[TRUE] / 4
    manifest.table[[f"share/{label}" for label in CLASSES]] = shares
    judged(manifest)
    assert heads[-1].weights.tolist() == pytest.approx(manifest.table["weight"].tolist())
    np.testing.assert_allclose(heads[-1].shares, shares)


def test_planted_wrong_labels_come_first():
    manifest = manifest_of(wrong=WRONG)
    found = training_label_errors(manifest.table, CLASSES, judged(manifest))
    assert sorted(found["row"].head(3)) == WRONG
    assert found["suggested"].head(3).tolist() == [CLASSES[TRUE[row]] for row in found["row"].head(3)]


def test_where_the_label_has_nothing_to_do_with_the_picture_heads_are_no_better_than_chance():
    manifest = manifest_of()
    drawn = np.random.default_rng(1).permutation(manifest.table["label"])
    shuffled = replace(manifest, table=manifest.table.assign(label=drawn))
    noise = np.random.default_rng(2).normal(size=(len(TRUE), 400)).astype(np.float16)
    probabilities = cross_validate(noise, shuffled, 4, 0, CPU)
    right = probabilities.argmax(1) == shuffled.targets[shuffled.rows("train")]
    assert right.mean() < 0.5


def test_the_result_follows_from_the_seed():
    first = judged(manifest_of())
    np.testing.assert_array_equal(first, judged(manifest_of()))
    assert not np.allclose(first, judged(manifest_of(), seed=1))


def test_fewer_pictures_than_folds_are_judged_all_the_same():
    manifest = manifest_of()
    few = manifest.table["split"].where((manifest.table["split"] != "train") | (manifest.table.index < 3), "dropped")
    probabilities = judged(replace(manifest, table=manifest.table.assign(split=few)), folds=10)
    assert probabilities.shape == (3, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1)
