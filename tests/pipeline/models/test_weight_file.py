"""Files of weights as training scripts of many kinds write them."""

import argparse
import math
import pathlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.body import build_body, load_weights
from pipeline.models.weights import Weights
from pipeline.system.errors import UserError

BACKBONE = "test_resnet"
State = dict[str, Tensor]


@pytest.fixture
def state() -> State:
    return dict(timm.create_model(BACKBONE).state_dict())


def loaded(path: Path) -> State:
    module = build_body(BACKBONE, 32).module
    load_weights(module, BACKBONE, Weights("file", path, "sha256:irrelevant"))
    return module.state_dict()


def saved(content: object, path: Path) -> Path:
    save_file(content, path) if path.suffix.lower() == ".safetensors" else torch.save(content, path)
    return path


def holds(found: State, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in found.items())


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("ending", [".PTH", ".pt", ".BIN", ".ckpt", ".pth.tar", ".safetensors", ".SAFETENSORS"])
def test_endings_are_in_any_case(state, tmp_path, ending):
    assert holds(loaded(saved(state, tmp_path / f"weights{ending}")), state)


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "model.backbone.", "encoder_q.0."]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_before_all_names_is_taken_off(state, tmp_path, prefix, ending):
    path = saved(prefixed(state, prefix) | {"head.weight": torch.ones(2)}, tmp_path / f"weights{ending}")
    assert holds(loaded(path), state)


def test_what_compiling_puts_within_names_is_taken_off(state, tmp_path):
    compiled = {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in state.items()}
    assert holds(loaded(saved(compiled, tmp_path / "weights.pth")), state)


WRAPPERS = ["model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "net", "teacher"]


@pytest.mark.parametrize("key", WRAPPERS)
def test_weights_lie_under_a_key_beside_what_else_a_script_saves(state, tmp_path, key):
    rest = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "best_accuracy": np.float64(0.9),
        "optimizer": {"state": {}},
    }
    path = saved({key: prefixed(state, "module.")} | rest, tmp_path / "weights.pth")
    assert holds(loaded(path), state)


def test_keys_may_be_nested(state, tmp_path):
    assert holds(loaded(saved({"checkpoint": {"model": state}}, tmp_path / "weights.pth")), state)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema"])
def test_averaged_weights_are_taken_before_those_that_they_average(state, tmp_path, key):
    last = {name: torch.full_like(tensor, 2) for name, tensor in state.items()}
    averaged = prefixed(state, "module.") | {"n_averaged": torch.tensor(7)}
    assert holds(loaded(saved({"model": last, key: averaged}, tmp_path / "weights.pth")), state)


def test_averaged_weights_that_do_not_fit_leave_those_that_do(state, tmp_path):
    part = {name: tensor for name, tensor in state.items() if name.endswith("weight")}
    assert holds(loaded(saved({"model": state, "model_ema": part}, tmp_path / "weights.pth")), state)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("is_old", [False, True])
def test_counters_of_batches_may_be_missing_as_in_files_from_before_pytorch_0_4_1(state, tmp_path, prefix, is_old):
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    path = tmp_path / "weights.pth"
    torch.save(prefixed(old, prefix), path, _use_new_zipfile_serialization=not is_old)
    found = loaded(path)
    assert holds({name: tensor for name, tensor in found.items() if name in old}, old)
    assert all(int(tensor) == 0 for name, tensor in found.items() if name not in old)


def test_any_other_tensor_that_is_missing_is_named(state, tmp_path):
    del state["bn1.running_mean"]
    with pytest.raises(UserError, match=r": 1 of \d+ tensors are missing or of another shape, bn1\.running_mean for"):
        loaded(saved(prefixed(state, "module."), tmp_path / "weights.pth"))


def test_a_head_of_another_number_of_classes_is_left_out(state, tmp_path):
    state |= {"fc.weight": torch.zeros(7, 3), "fc.bias": torch.zeros(7)}
    assert holds(loaded(saved(prefixed(state, "model."), tmp_path / "weights.pth")), state)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(state, tmp_path, kind):
    other = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    assert holds(loaded(saved(other, tmp_path / "weights.pth")), {name: t.float() for name, t in other.items()})


def test_whole_numbers_are_no_weights(state, tmp_path):
    state["conv1.0.weight"] = state["conv1.0.weight"].to(torch.int8)
    with pytest.raises(UserError, match=r"do not fit test_resnet: 1 of .* conv1\.0\.weight for one"):
        loaded(saved(state, tmp_path / "weights.pth"))


def set_one(name: str, value: float) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name].view(-1)[1] = value

    return change


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layer2.0.conv1.weight", math.nan, r"1 of [\d,]+ values are NaN or infinite"),
        ("bn1.weight", math.inf, r"1 of \d+ values are NaN or infinite"),
        ("layer3.0.bn2.running_var", -math.inf, r"1 of \d+ values are NaN or infinite"),
        ("bn1.running_var", -1.0, r"1 of \d+ variances are below 0"),
    ],
)
def test_broken_values_are_reported_with_their_file_and_tensor(state, tmp_path, name, value, words, ending):
    set_one(name, value)(state)
    path = saved(state, tmp_path / f"weights{ending}")
    with pytest.raises(UserError, match=rf"^The weights from {path} are broken: in {name} {words}; give others in mod"):
        loaded(path)


def test_values_too_large_for_float32_are_broken(state, tmp_path):
    state["bn1.bias"] = torch.full_like(state["bn1.bias"], 1e300, dtype=torch.float64)
    with pytest.raises(UserError, match=r"in bn1\.bias .* values are NaN or infinite"):
        loaded(saved(state, tmp_path / "weights.pth"))


def test_a_broken_head_which_is_not_taken_does_no_harm(state, tmp_path):
    set_one("fc.weight", math.nan)(state)
    loaded(saved(state, tmp_path / "weights.pth"))


def test_broken_weights_change_nothing_of_the_body(state, tmp_path):
    set_one("layer4.0.conv1.weight", math.nan)(state)
    module = build_body(BACKBONE, 32).module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError, match="are broken"):
        load_weights(module, BACKBONE, Weights("file", saved(state, tmp_path / "weights.pth"), ""))
    assert holds(module.state_dict(), before)


@pytest.mark.parametrize("content", [pathlib.PurePosixPath("a"), torch.nn.Linear(1, 1)], ids=["path", "module"])
def test_objects_are_refused_with_what_to_save_instead(tmp_path, content):
    with pytest.raises(
        UserError, match=r"it holds Python objects \(\w[\w.]+\), which are never loaded; give"
    ) as caught:
        loaded(saved({"model": content}, tmp_path / "weights.pth"))
    assert "weights_only" not in str(caught.value)
