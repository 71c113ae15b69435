import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.models.body import build_body, load_weights, packaged_state
from pipeline.models.weights import PACKAGES, Weights, find_weights
from pipeline.system.errors import UserError

LITE0, LITE1, LITE2 = (f"tf_efficientnet_lite{number}" for number in range(3))
ESPRESSO = 967


def file_of(path: Path) -> Weights:
    return Weights("file", path, "sha256:irrelevant")


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize(("backbone", "image_px", "least"), [(LITE0, 224, 0.9), (LITE1, 240, 0.5), (LITE2, 260, 0.5)])
def test_the_packaged_weights_know_an_espresso(backbone: str, image_px: int, least: float) -> None:
    if backbone != LITE0:  # which is the only one that the project needs
        pytest.importorskip(PACKAGES[backbone])
    network = timm.create_model(backbone)
    network.load_state_dict(packaged_state(backbone, find_weights(backbone, "auto", 0)))
    cup = np.array(Image.fromarray(skimage.data.coffee()).resize((image_px, image_px)), dtype=np.float32) / 255
    image = (torch.from_numpy(cup).permute(2, 0, 1).unsqueeze(0) - 0.5) / 0.5
    with torch.no_grad():
        probabilities = network.eval()(image).softmax(1)[0]
    assert int(probabilities.argmax()) == ESPRESSO
    assert probabilities[ESPRESSO] >= least


@pytest.mark.parametrize("backbone", [LITE1, LITE2])
def test_the_weights_of_lite1_and_lite2_are_found_in_their_packages_by_order(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / PACKAGES[backbone] / "models").mkdir(parents=True)
    (tmp_path / PACKAGES[backbone] / "__init__.py").touch()
    state = timm.create_model(backbone).state_dict()
    renamed = {f"layer.{number}": tensor for number, tensor in enumerate(state.values())}
    torch.save(renamed, tmp_path / PACKAGES[backbone] / "models" / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGES[backbone], raising=False)  # it may be installed
    weights = find_weights(backbone, "auto", 0)
    assert weights.kind == "package"
    body = build_body(backbone, 64)
    load_weights(body.module, backbone, weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.module.state_dict().items())
    other = LITE1 if backbone == LITE2 else LITE2
    with pytest.raises(UserError, match=f"are not laid out like {other}; use model.weights=hub"):
        packaged_state(other, weights)


def test_the_body_of_lite0_takes_all_but_the_classifier_from_its_package() -> None:
    weights = find_weights(LITE0, "auto", 0)
    body = build_body(LITE0, 64)
    load_weights(body.module, LITE0, weights)
    packaged = packaged_state(LITE0, weights)
    loaded = body.module.state_dict()
    assert set(packaged) - set(loaded) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, packaged[name]) for name, tensor in loaded.items())


def test_the_normalisation_is_the_backbones_own() -> None:
    assert build_body(LITE0, 64).mean == build_body(LITE0, 64).std == (0.5, 0.5, 0.5)
    assert build_body("test_efficientnet", 32).mean == (0.485, 0.456, 0.406)
    assert build_body("test_efficientnet", 32).std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", LITE0])
def test_a_maximum_pool_beside_the_average_doubles_the_activations(backbone: str) -> None:
    plain = timm.create_model(backbone, num_classes=0).eval()
    body = build_body(backbone, 64)
    plain.load_state_dict(body.module.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        average, both, maps = plain(images), body.module(images), plain.forward_features(images)
    assert body.activations == both.shape[1] == 2 * average.shape[1]
    torch.testing.assert_close(both[:, : average.shape[1]], average)
    torch.testing.assert_close(both[:, average.shape[1] :], maps.amax(dim=(2, 3)))


def test_a_body_without_a_plain_pool_keeps_its_activations() -> None:
    assert build_body("test_vit", 32).activations == timm.create_model("test_vit").num_features


@pytest.mark.parametrize("image_px", [32, 48, 160, 192])
@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_224", "cait_xxs24_224"])
def test_a_vit_takes_images_of_other_sizes_than_it_was_made_for(backbone: str, image_px: int) -> None:
    body = build_body(backbone, image_px)
    with torch.no_grad():
        assert body.module(torch.zeros(2, 3, image_px, image_px)).shape == (2, body.activations)


@pytest.mark.parametrize("image_px", [30, 225])
def test_a_size_that_the_backbone_cannot_take_is_refused_by_name(image_px: int) -> None:
    with pytest.raises(UserError, match=rf"test_vit takes no image of {image_px} px"):
        build_body("test_vit", image_px)


def test_random_weights_are_those_that_the_body_was_made_with() -> None:
    torch.manual_seed(3)
    first = build_body("test_resnet", 32).module
    load_weights(first, "test_resnet", find_weights("test_resnet", "random", 3))
    torch.manual_seed(3)
    second = build_body("test_resnet", 32).module
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_file_of_a_whole_timm_model_fills_the_body(tmp_path: Path, suffix: str) -> None:
    state = timm.create_model("test_resnet").state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    body = build_body("test_resnet", 32)
    load_weights(body.module, "test_resnet", file_of(path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in body.module.state_dict().items())


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    with pytest.raises(UserError, match=r"do not fit test_resnet: \d+ of 90 tensors are missing or of another shape"):
        load_weights(build_body("test_resnet", 32).module, "test_resnet", file_of(path))


def test_a_single_tensor_of_another_shape_is_refused_and_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:-1].clone()
    path = tmp_path / "cut.pth"
    torch.save(state, path)
    module = build_body("test_resnet", 32).module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(UserError, match=r"1 of 90 tensors .* layer2\.0\.conv1\.weight for one"):
        load_weights(module, "test_resnet", file_of(path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_weights_wrapped_in_a_training_scripts_dictionary_are_unwrapped(tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pth"
    saved = timm.create_model("test_resnet").state_dict()
    torch.save({"epoch": 3, "state_dict": saved}, path)
    module = build_body("test_resnet", 32).module
    load_weights(module, "test_resnet", file_of(path))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("content", [torch.zeros(3), None, {"conv1.weight": 3}], ids=["tensor", "none", "numbers"])
def test_a_file_that_holds_no_weights_by_name_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match="holds no weights by name"):
        load_weights(build_body("test_resnet", 32).module, "test_resnet", file_of(path))


@pytest.mark.parametrize("backbone", ["test_resnet", "tf_efficientnet_lite1"])
def test_a_package_laid_out_like_another_backbone_is_refused(backbone: str) -> None:
    with pytest.raises(UserError, match=f"are not laid out like {backbone}"):
        packaged_state(backbone, find_weights(LITE0, "auto", 0))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 cut short"])
def test_an_unreadable_file_is_one_sentence_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read") as raised:
        load_weights(build_body("test_resnet", 32).module, "test_resnet", file_of(path))
    assert "\n" not in str(raised.value)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(build_body("test_resnet", 32).module, "test_resnet", file_of(cut))


@pytest.mark.parametrize("is_bare_pickle", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_its_code_is_not_run(tmp_path: Path, is_bare_pickle: bool) -> None:
    mark, path = tmp_path / "mark", tmp_path / "malicious.pth"
    state = {"conv1.0.weight": Intruder(mark)}
    if is_bare_pickle:
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        torch.save(state, path)
    with pytest.raises(UserError, match=r"malicious\.pth cannot be read"):
        load_weights(build_body("test_resnet", 32).module, "test_resnet", file_of(path))
    assert not mark.exists()


def test_a_hub_out_of_reach_is_one_sentence_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host\nand a long trace")

    module = build_body("test_resnet", 32).module
    monkeypatch.setattr("pipeline.models.body.timm.create_model", unreachable)
    with pytest.raises(UserError, match=r"timm's hub \(no route to host\); check the network"):
        load_weights(module, "test_resnet", Weights("hub", None, "hub:test_resnet"))
