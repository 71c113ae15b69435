from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.network import Network
from pipeline.runs.ensemble import networks
from pipeline.runs.ensemble.networks import (
    EvaluatedNetwork,
    ensemble_inputs,
    load_members,
    open_networks,
    read_upstreams,
)
from pipeline.runs.stage import Stage
from pipeline.runs.upstream import Upstream
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef

CPU = torch.device("cpu")


def upstream(folder, run_id: str, digest: str = "same", precompute: str = "p", **facts):
    """The runs before an evaluation, as far as it reads them, with a network of these facts."""
    own = {"classes": ["cat", "dog"], "image_px": 32, "fit": "crop", "grey": False} | facts
    checkpoint = Checkpoint("test_resnet", own["classes"], 0, 0.0, own["image_px"], own["fit"], own["grey"])
    if not (folder / run_id).exists():
        save_checkpoint(build_network(checkpoint), checkpoint, folder / run_id)
    return SimpleNamespace(
        chain=[RunRef(run_id, "resize", f"fingerprint of {run_id}", precompute)],
        nearest=lambda stage: RunRef(precompute, stage, "", None),
        manifest=SimpleNamespace(digest=digest),
        folder=lambda name, stage: folder / run_id,
        pixels=lambda open_run, facts: np.full((1, 1), facts.image_px),
    )


@pytest.fixture
def read(monkeypatch):
    """`read_upstreams` of these runs."""

    def read(*runs):
        by_id = {one.chain[0].run_id: one for one in runs}
        monkeypatch.setattr(Upstream, "of", lambda stage, recipe, run_id: by_id[run_id])
        return read_upstreams(Stage("evaluate"), None, ", ".join(by_id))

    return read


def test_runs_of_one_precompute_or_of_the_same_pictures_are_averaged(read, tmp_path):
    runs = [upstream(tmp_path, "a"), upstream(tmp_path, "b", image_px=48), upstream(tmp_path, "c", precompute="q")]
    assert read(*runs) == runs


@pytest.mark.parametrize(
    "other",
    [
        {"digest": "other", "precompute": "q"},
        {"classes": ["cat", "hen"]},
        {"fit": "pad"},
        {"grey": True},
    ],
)
def test_networks_for_other_pictures_are_refused(read, tmp_path, other):
    with pytest.raises(UserError, match="The network of run b is for other pictures than that of run a"):
        read(upstream(tmp_path, "a"), upstream(tmp_path, "b", **other))


def test_a_run_that_is_named_twice_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(Upstream, "of", lambda stage, recipe, run_id: upstream(tmp_path, run_id))
    with pytest.raises(UserError, match="upstream names run a twice"):
        read_upstreams(Stage("evaluate"), None, "a,a")


def test_an_evaluation_depends_on_all_networks_and_their_order(tmp_path):
    a, b, c = (upstream(tmp_path, run_id) for run_id in "abc")
    assert ensemble_inputs([a]) == {}, "so that an evaluation of one network is found again"
    assert ensemble_inputs([a, b]) != ensemble_inputs([a, c])
    assert ensemble_inputs([a, b, c]) != ensemble_inputs([a, c, b])


def test_networks_of_one_size_share_their_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "_name", lambda up: up.chain[0].run_id)
    runs = [upstream(tmp_path, "a"), upstream(tmp_path, "b", image_px=48), upstream(tmp_path, "c")]
    found = open_networks(runs, "run")
    assert [(one.name, one.folder) for one in found] == [(run_id, tmp_path / run_id) for run_id in "abc"]
    assert [one.pixels[0, 0] for one in found] == [32, 48, 32]
    assert found[0].pixels is found[2].pixels


def test_networks_are_loaded_one_after_the_other(tmp_path, monkeypatch):
    for run_id in "ab":
        upstream(tmp_path, run_id)
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    loaded = []
    load = EvaluatedNetwork.load
    monkeypatch.setattr(EvaluatedNetwork, "load", lambda self, device: loaded.append(self.name) or load(self, device))
    first, members = load_members([EvaluatedNetwork(name, tmp_path / name, pixels) for name in "ab"], CPU)
    assert isinstance(first, Network)
    assert next(members).network is first
    assert loaded == ["a"]
    assert [one.name for one in members] == ["b"]
