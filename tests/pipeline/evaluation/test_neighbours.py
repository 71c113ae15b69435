import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.evaluation import neighbours
from pipeline.evaluation.neighbours import choose_kept, least_similarity, load_neighbours, save_neighbours

DIRECTIONS = np.eye(4, dtype=np.float16)
LABELS = ["cat", "cat", "dog", "NA"]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Four training pictures, at rows 1, 3, 5 and 7 of the pixels, whose activations lie in four directions."""
    monkeypatch.setattr(neighbours, "PICTURES_AT_ONCE", 3)
    pixels = np.zeros((8, 200, 200, 1), np.uint8)
    pixels[[1, 3, 5, 7]] += np.array([10, 80, 150, 220], np.uint8)[:, None, None, None]
    table = pd.DataFrame({"path": [f"{row}.png" for row in range(8)], "label": "other"})
    table.loc[[1, 3, 5, 7], "label"] = LABELS
    save_neighbours(table.loc[[1, 3, 5, 7]], pixels, DIRECTIONS, DIRECTIONS[:2], 9, tmp_path)
    return load_neighbours(tmp_path)


def test_the_nearest_comes_first_with_its_own_label_path_and_picture(kept):
    found = kept.nearest(np.array([0.1, 0, 1, 0.2], np.float16), 3)
    assert [(one.label, one.path) for one in found] == [("dog", "5.png"), ("NA", "7.png"), ("cat", "1.png")]
    assert found[0].similarity > found[1].similarity > found[2].similarity
    greys = [np.asarray(Image.open(io.BytesIO(one.thumbnail))).mean() for one in found]
    assert greys == pytest.approx([150, 220, 10], abs=2)


def test_pictures_are_read_many_at_a_time_as_a_gpu_decodes_them(tmp_path):
    asked = []

    class Decoded:
        def __getitem__(self, rows):
            asked.append(list(rows))
            return np.zeros((len(rows), 8, 8, 3), np.uint8)

    table = pd.DataFrame({"path": "a.png", "label": "cat"}, index=range(300))
    save_neighbours(table, Decoded(), np.ones((300, 4)), np.ones((2, 4)), 300, tmp_path)
    assert asked == [list(range(256)), list(range(256, 300))]
    assert len(load_neighbours(tmp_path).pictures) == 300


def test_a_picture_is_most_like_itself(kept):
    for at, label in enumerate(LABELS):
        (found,) = kept.nearest(DIRECTIONS[at], 1)
        assert (found.label, found.similarity) == (label, pytest.approx(1, abs=1e-3))


def test_what_is_kept_of_a_picture_is_small(kept, tmp_path):
    (found,) = kept.nearest(DIRECTIONS[0], 1)
    assert max(Image.open(io.BytesIO(found.thumbnail)).size) == 96
    assert (kept.trained_on, kept.activations.dtype) == (9, np.float16)
    assert {path.name for path in tmp_path.glob("*.*")} == {
        "pictures.csv", "activations.npy", "thumbnails.npy", "facts.json"
    }  # fmt: skip


def test_validation_pictures_say_how_like_training_a_picture_has_to_be(kept):
    assert kept.least_similarity == pytest.approx(1, abs=1e-3), "they are training pictures themselves"
    away = np.array([[2.5, -0.5, -0.5, -0.5]] * 49 + [[-2, 1, 1, 1.2]], np.float16)
    assert least_similarity(DIRECTIONS, away[:49]) == pytest.approx(1, abs=1e-3)
    assert least_similarity(DIRECTIONS, away) < 0.99, "one in fifty is unlike"
    assert least_similarity(DIRECTIONS, away[:0]) == -1


def test_few_are_kept_of_each_label_before_others_have_more():
    labels = ["common"] * 50 + ["rare"] * 3 + ["odd"] * 7
    rows = np.arange(60, dtype=np.int64) + 100
    chosen = choose_kept(rows, labels, 12, seed=0)
    assert Counter(labels[row - 100] for row in chosen) == {"common": 5, "rare": 3, "odd": 4} or Counter(
        labels[row - 100] for row in chosen
    ) == {"common": 4, "rare": 3, "odd": 5}
    assert list(chosen) == sorted(chosen)
    assert list(chosen) == list(choose_kept(rows, labels, 12, seed=0))
    assert list(chosen) != list(choose_kept(rows, labels, 12, seed=1))


@pytest.mark.parametrize(("most", "kept"), [(0, 0), (3, 3), (100, 3)])
def test_no_more_are_kept_than_there_are_or_than_was_asked_for(most, kept):
    assert len(choose_kept(np.arange(3, dtype=np.int64), ["a", "b", "a"], most, 0)) == kept
