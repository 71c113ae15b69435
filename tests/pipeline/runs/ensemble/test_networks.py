import numpy as np
import torch

from pipeline.models.network import Network
from pipeline.runs.ensemble import networks
from pipeline.runs.ensemble.networks import EvaluatedNetwork, load_members, open_networks
from tests.pipeline.runs.upstreams import upstream

CPU = torch.device("cpu")


def test_networks_of_one_size_share_their_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "_name", lambda up: up.chain[0].run_id)
    monkeypatch.setattr(networks, "pixels_of", lambda up, run_id, facts: np.full((1, 1), facts.image_px))
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
