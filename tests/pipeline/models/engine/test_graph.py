from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from pipeline.cache.maintenance import list_entries
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import cut_network
from pipeline.models.engine.graph import below, open_graph, weights_for, whole
from pipeline.models.network import Network

FACTS = Checkpoint("test_resnet", ["cat", "dog", "hen"], 8, 0.5, 32, "crop", False)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("THAW_CACHE", str(folder))
        yield folder


def fresh(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_network(FACTS).eval()


def test_a_graph_has_the_names_of_all_weights_and_the_values_of_none():
    network = fresh()
    graph = open_graph(whole(network), FACTS)
    weights = weights_for(graph, network)
    counters = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    assert {name.removeprefix("network.") for name in weights} == set(network.state_dict()) - counters
    assert len(graph) < sum(tensor.nbytes for tensor in weights.values()) / 4
    taken = [one for one in onnx.load_from_string(graph).graph.initializer if one.name in weights]
    assert len(taken) == len(weights)
    assert not any(one.raw_data or one.float_data for one in taken)


def test_it_is_exported_once_for_a_structure_and_size_whatever_the_weights(monkeypatch, cache):
    graph = open_graph(whole(fresh(0)), FACTS)
    exported = []
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **named: exported.append(given))
    assert open_graph(whole(fresh(1)), FACTS) == graph
    assert not exported
    with pytest.raises(ValueError, match="unpack"):  # the export wrote nothing
        open_graph(whole(fresh(0)), Checkpoint("test_resnet", ["cat", "dog", "hen"], 8, 0.5, 64, "crop", False))
    assert len(exported) == 1


def test_the_cache_lists_it_by_what_it_is_of():
    network = fresh()
    open_graph(whole(network), FACTS)
    open_graph(below(network, cut_network(network, "late", 32)), FACTS)
    entries = [entry.made_from for entry in list_entries() if entry.kind == "graphs"]
    assert sorted(entries) == ["test_resnet, 32 px", "test_resnet, 32 px, cut at late"]


def test_exporting_leaves_the_network_and_the_random_state_as_they_were(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    network = fresh()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    open_graph(whole(network), FACTS)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module.training for module in network.modules())


def test_a_graph_that_hides_a_weight_is_refused_and_not_kept(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    network = fresh()
    network.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"hides 2 of its weights, unused\.bias for one"):
        open_graph(whole(network), FACTS)
    assert not list_entries()
