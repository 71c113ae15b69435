import numpy as np
import pytest

from pipeline.evaluation.embedding import embedding_map


def test_two_heaps_of_pictures_lie_apart_on_the_map():
    draw = np.random.default_rng(0)
    activations = draw.normal(size=(60, 40)).astype(np.float16)
    activations[30:] += 4
    places, explained = embedding_map(activations, seed=0)
    assert places.shape == (60, 2)
    assert (places[:30, 0] > 0).all() != (places[30:, 0] > 0).all()
    assert 0.3 < explained < 1


def test_a_large_activation_weighs_no_more_than_the_others():
    draw = np.random.default_rng(1)
    activations = draw.normal(size=(50, 10))
    scaled = activations * np.array([1e4, *[1.0] * 9])
    np.testing.assert_allclose(np.abs(embedding_map(activations, 0)[0]), np.abs(embedding_map(scaled, 0)[0]), atol=1e-2)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_lie_at_the_origin(count):
    places, explained = embedding_map(np.ones((count, 3)), seed=0)
    assert places.tolist() == [[0.0, 0.0]] * count
    assert explained == 0


def test_pictures_that_are_all_alike_are_no_error():
    places, explained = embedding_map(np.ones((5, 3)), seed=0)
    assert np.isfinite(places).all()
    assert explained == 0


def test_many_pictures_are_all_placed_by_the_directions_found_on_some(monkeypatch):
    monkeypatch.setattr("pipeline.evaluation.embedding.MOST_PICTURES", 20)
    activations = np.random.default_rng(2).normal(size=(90, 6)) * np.arange(1, 7)
    places, _ = embedding_map(activations, seed=0)
    assert len(places) == 90
    assert len(np.unique(places[:, 0])) == 90
