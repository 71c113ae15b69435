"""Frozen parts of a network over many pictures go through ONNX Runtime, with the results of PyTorch."""

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.cache.maintenance import list_entries
from pipeline.models.engine import passes
from pipeline.models.engine.session import Session
from tests.stages.chains import run_stage_on

COMPARED = 4  # pictures of which each session's results are compared with PyTorch's


@pytest.fixture
def passed(monkeypatch) -> list[int]:
    """How many pictures went through ONNX Runtime, pass by pass."""
    counts: list[int] = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: counts.append(len(images)) or run(self, images))
    return counts


def take_onnx_from(monkeypatch, pictures: int, size_px: int) -> None:
    """Let work on so many pictures be the least that ONNX Runtime is taken for."""
    monkeypatch.setattr(passes, "LEAST_PIXELS", pictures * size_px**2)


def activation_stores() -> set:
    return {entry.path for entry in list_entries() if entry.kind == "activations"}


def test_what_precompute_stores_goes_through_onnx_runtime_into_a_store_of_its_own_which_is_found_again(
    chain, on_chain, monkeypatch, passed
):
    take_onnx_from(monkeypatch, 72, 32)
    before = activation_stores()
    run_stage_on("precompute", chain.other_recipe(reuse="never"))
    assert sum(passed) == 72 + COMPARED
    (store,) = activation_stores() - before
    own = np.load(chain["precompute"].files / "activations" / "activations.npy")
    np.testing.assert_allclose(np.load(store / "activations.npy"), own, atol=1e-4)
    passed.clear()
    run_stage_on("precompute", chain.other_recipe(reuse="never"))
    assert sum(passed) == COMPARED


def test_what_evaluate_predicts_goes_through_onnx_runtime(chain, on_chain, monkeypatch, passed, capsys):
    take_onnx_from(monkeypatch, 72, 40)
    again = run_stage_on("evaluate", chain.other_recipe(reuse="never"), chain["resize"])
    assert sum(passed) == COMPARED + 72 + 2 * 21, "every picture, and two views of those of the test split"
    found, own = (pd.read_csv(run.files / "predictions.csv") for run in (again, chain["evaluate"]))
    for column in ("loss", "tta_loss"):
        np.testing.assert_allclose(found[column], own[column], atol=1e-4)
    assert "PyTorch computes" not in capsys.readouterr().out


def test_the_frozen_part_of_a_training_on_many_pictures_goes_through_onnx_runtime(chain, on_chain, monkeypatch, passed):
    take_onnx_from(monkeypatch, 4 * 33, 40)  # four epochs of 0.9 of the training pictures
    again = run_stage_on("resize", chain.other_recipe(reuse="never"), chain["fine_tune"])
    assert sum(passed) == COMPARED + 4 * (32 + 15) + 15, "each epoch's, with validation; and the mean's validation"
    assert [step.rates for step in again.did.steps] == [step.rates for step in chain["resize"].did.steps]
    for name, tensor in again.network().items():
        torch.testing.assert_close(tensor, chain["resize"].network()[name], rtol=1e-2, atol=1e-3)


def test_the_frozen_part_of_a_training_on_fewer_pictures_does_not(chain, on_chain, monkeypatch, passed):
    take_onnx_from(monkeypatch, 4 * 33 + 1, 40)
    run_stage_on("resize", chain.other_recipe(reuse="never", resize__cycles=1), chain["fine_tune"])
    assert not passed
