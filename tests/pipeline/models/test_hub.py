"""The hub's cache on this machine is a folder of the test's own; nothing is fetched."""

import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models import hub
from pipeline.models.body import build_body, load_weights
from pipeline.models.hub import fetch_weights
from pipeline.models.weights import find_weights
from pipeline.system.errors import UserError

BACKBONE = "test_resnet"
ASK = hub._require_answer
REPOSITORY = "models--timm--test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As a machine without a network, which has fetched nothing yet."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host\nand a long trace")

    real = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache",
        lambda repository, name, **given: real(repository, name, cache_dir=tmp_path / "hub", **given),
    )  # fmt: skip
    monkeypatch.setattr(hub, "_require_answer", no_network)
    hub._fetch.cache_clear()
    return tmp_path / "hub"


def put(hub_cache: Path, seed: int) -> dict[str, Tensor]:
    """Weights of the backbone in the hub's cache."""
    torch.manual_seed(seed)
    state = timm.create_model(BACKBONE).state_dict()
    folder = hub_cache / REPOSITORY / "snapshots" / "abc"
    folder.mkdir(parents=True, exist_ok=True)
    (hub_cache / REPOSITORY / "refs").mkdir(exist_ok=True)
    (hub_cache / REPOSITORY / "refs" / "main").write_text("abc")
    save_file(state, folder / "model.safetensors")
    hub._fetch.cache_clear()
    return state


def test_weights_of_the_hub_are_named_by_their_content(hub_cache: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        put(hub_cache, seed)
        found.append(fetch_weights(BACKBONE, find_weights(BACKBONE, "hub", 0)).identity)
    assert found[0] == found[1] != found[2]
    assert found[0].startswith(f"hub:{BACKBONE}:sha256:")


def test_weights_that_were_fetched_before_need_no_network(hub_cache: Path) -> None:
    expected = put(hub_cache, 3)
    module = build_body(BACKBONE, 32).module
    load_weights(module, BACKBONE, fetch_weights(BACKBONE, find_weights(BACKBONE, "hub", 0)))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


def test_other_weights_than_the_hubs_are_left_as_they_are() -> None:
    for weights in (find_weights(BACKBONE, "random", 0), find_weights("tf_efficientnet_lite0", "auto", 0)):
        assert fetch_weights(BACKBONE, weights) is weights


def test_a_hub_out_of_reach_is_one_sentence_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"timm's hub \(no route to host\); check the network"):
        fetch_weights(BACKBONE, find_weights(BACKBONE, "hub", 0))


def test_without_a_network_it_is_known_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_require_answer", ASK)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be had from timm's hub"):
        fetch_weights(BACKBONE, find_weights(BACKBONE, "hub", 7))
    assert time.monotonic() - started < 30  # where the hub's own client takes a minute


def test_a_damaged_file_of_the_hub_is_named(hub_cache: Path) -> None:
    put(hub_cache, 0)
    found = fetch_weights(BACKBONE, find_weights(BACKBONE, "hub", 0))
    assert found.path is not None
    found.path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .*; remove that file"):
        load_weights(build_body(BACKBONE, 32).module, BACKBONE, found)


def test_a_backbone_without_weights_is_told_so() -> None:
    with pytest.raises(UserError, match=r"timm has no weights of resnet200; set model\.weights to random"):
        fetch_weights("resnet200", find_weights("resnet200", "hub", 0))
