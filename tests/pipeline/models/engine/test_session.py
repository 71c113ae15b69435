import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.engine import session as sessions
from pipeline.models.engine.graph import open_graph, weights_for, whole
from pipeline.models.engine.session import pictures_at_once, start_session

FACTS = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.5, 32, "crop", True)


@pytest.fixture(scope="module")
def graph_and_network(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE", str(tmp_path_factory.mktemp("cache")))
        network = build_network(FACTS).eval()
        torch.nn.init.normal_(network.head[-1].weight)
        yield open_graph(whole(network), FACTS), network


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_any_number_of_pictures_runs_a_few_at_a_time_in_their_order(graph_and_network, count):
    graph, network = graph_and_network
    session = start_session(graph, 3, weights_for(graph, network))
    images = torch.rand(count, 32, 32, 1, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    activations, logits = session.run(images)
    with torch.no_grad():
        wanted = network.with_activations(images)
    torch.testing.assert_close(activations, wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, wanted[1], rtol=1e-4, atol=1e-5)
    assert count == 1 or float(logits.std(0).max()) > 1e-3, "the pictures have to be told apart"


def test_one_graph_serves_the_weights_of_every_network_of_its_structure(graph_and_network):
    graph, network = graph_and_network
    torch.manual_seed(7)
    other = build_network(FACTS).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        wanted = other.activations(images)
    found = start_session(graph, 2, weights_for(graph, other)).run(images)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, start_session(graph, 2, weights_for(graph, network)).run(images)[0], atol=1e-2)


def test_its_threads_are_those_of_torch_and_sleep_while_they_wait(graph_and_network, monkeypatch):
    graph, network = graph_and_network
    given = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        sessions.onnxruntime, "InferenceSession",
        lambda source, options, **named: given.append(options) or real(source, options, **named),
    )  # fmt: skip
    start_session(graph, 2, weights_for(graph, network))
    assert given[0].intra_op_num_threads == torch.get_num_threads()
    assert given[0].get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_fewer_pictures_go_at_a_time_the_larger_they_are_and_more_with_more_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [pictures_at_once(size) for size in (64, 128, 256, 512)] == [16, 4, 1, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert pictures_at_once(256) == 8


def test_the_same_pictures_give_the_same_bits_in_another_session(graph_and_network):
    graph, network = graph_and_network
    images = torch.rand(7, 1, 32, 32)
    first, second = (start_session(graph, 3, weights_for(graph, network)).run(images) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
