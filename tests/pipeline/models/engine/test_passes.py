import numpy as np
import pytest
import torch

from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import cut_network
from pipeline.models.engine import passes
from pipeline.models.engine.passes import Engine, frozen_below, frozen_network, pays
from pipeline.models.network import Network

FACTS = Checkpoint("test_resnet", ["cat", "dog"], 8, 0.5, 32, "crop", False)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
MANY = -(-passes.LEAST_PIXELS // 32**2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THAW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def fresh(facts: Checkpoint = FACTS) -> Network:
    torch.manual_seed(0)
    network = build_network(facts)
    torch.nn.init.normal_(network.head[-1].weight)
    return network


def test_many_pictures_are_computed_by_onnx_runtime_as_by_the_network_in_eval_mode(capsys):
    network = fresh()
    frozen = frozen_network(network.train(), FACTS, PIXELS, MANY)
    assert isinstance(frozen, Engine)
    with torch.no_grad():
        wanted = network.eval().with_activations(IMAGES)
    for found, own in zip(frozen.with_activations(IMAGES), wanted, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
    assert torch.equal(frozen(IMAGES), frozen.with_activations(IMAGES)[1])
    assert not capsys.readouterr().out


def test_few_pictures_are_computed_by_the_network_whatever_the_cache_holds():
    network = fresh()
    assert isinstance(frozen_network(network, FACTS, PIXELS, MANY), Engine)
    assert frozen_network(network, FACTS, PIXELS, MANY - 1) is network
    assert not network.training


def test_the_line_follows_from_pictures_pixels_and_device_alone():
    assert [pays(count, 128, CPU) for count in (366, 367)] == [False, True]
    assert [pays(count, 256, CPU) for count in (91, 92)] == [False, True]
    assert not pays(10**9, 128, torch.device("cuda"))


def test_a_session_that_disagrees_is_not_used_and_a_sentence_says_by_how_much(monkeypatch, capsys):
    def broken(graph, network):
        weights = dict(right(graph, network))
        weights["network.head.6.bias"] = weights["network.head.6.bias"] + 0.5
        return weights

    right = passes.weights_for
    monkeypatch.setattr(passes, "weights_for", broken)
    network = fresh()
    assert frozen_network(network, FACTS, PIXELS, MANY) is network
    said = capsys.readouterr().out
    assert "PyTorch computes what is frozen, and not ONNX Runtime: its logits differ from the network's by 0.5" in said


def test_a_network_that_cannot_be_exported_computes_itself_and_says_why(capsys):
    facts = Checkpoint("test_vit", ["cat", "dog"], 8, 0.5, 32, "crop", False)  # its positions are resampled
    network = fresh(facts)
    for _ in range(2):  # the second time by the graph in the cache
        assert frozen_network(network, facts, PIXELS, MANY) is network
        said = capsys.readouterr().out
        assert "this network cannot be exported" in said
        assert "_upsample_bicubic2d_aa" in said
        assert len(said.splitlines()) < 4


@pytest.mark.parametrize("cut", ["head", "late"])
def test_the_part_below_a_cut_is_computed_in_the_same_way_and_says_by_what(cut):
    network = fresh().eval()
    halves = cut_network(network, cut, 32)
    frozen = frozen_below(network, FACTS, halves, PIXELS, MANY)
    with torch.no_grad():
        torch.testing.assert_close(frozen.below(IMAGES), halves.below(IMAGES), rtol=1e-4, atol=1e-5)
    assert frozen.below is not halves.below
    assert set(frozen.engine) == {"onnx", "onnxruntime"}
    assert frozen.above is halves.above
    assert not frozen_below(network, FACTS, halves, PIXELS, MANY - 1).engine
