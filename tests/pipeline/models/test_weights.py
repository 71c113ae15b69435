import hashlib

import pytest

from pipeline.models.weights import PACKAGES, Weights, _tagged_names, backbone_names, check_backbone, find_weights
from pipeline.system.errors import UserError


def test_the_names_read_from_timm_s_source_are_those_that_timm_lists():
    import timm

    assert backbone_names() == set(timm.list_models())


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "tf_efficientnet_lite0",
        "resnet18.a1_in1k",
        "vit_tiny_patch16_224",
        "hf-hub:timm/resnet18.a1_in1k",
        "vit_base_patch16_clip_quickgelu_224.metaclip_400m",
    ],
)
def test_a_backbone_of_timm_s_is_taken_with_or_without_a_tag(name):
    check_backbone(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet19", "resnet18"),
        ("resnet19.a1_in1k", "resnet18"),
        ("tf_efficentnet_lite0", "tf_efficientnet_lite0"),
        ("ResNet50", "resnet50"),
        ("hf-hub:timm/resnet19.a1_in1k", "resnet18"),
        ("hf_hub:timm/convnext_tinyy", "convnext_tiny"),
        ("timm/vit_tiny_patch16_225", "vit_tiny_patch16_224"),
        ("https://huggingface.co/timm/resnet18", "resnet18"),
        ("hf-hub:microsoft/resnet-50", "resnet50"),
        ("someone/resnet18", "resnet18"),
    ],
)
def test_an_unknown_backbone_is_reported_with_the_nearest_names(name, nearest):
    with pytest.raises(UserError) as caught:
        check_backbone(name)
    message, _, names = str(caught.value).partition("; the nearest are ")
    assert message == f"model.backbone is {name}, which timm does not have"
    assert nearest in names.rstrip(".").split(", ")


def test_an_unknown_tag_is_reported_with_the_nearest_tags():
    with pytest.raises(UserError, match=r"timm has no weights a1_in1 of resnet18; the nearest are a1_in1k, "):
        check_backbone("resnet18.a1_in1")


def test_the_tags_read_from_timm_s_source_are_those_that_timm_lists_where_it_has_any_of_an_architecture():
    import timm

    known = {name for name in timm.list_pretrained() if "." in name}
    with_tags = {name.partition(".")[0] for name in _tagged_names()}
    assert {name for name in known if name.partition(".")[0] in with_tags} <= _tagged_names()


def test_a_name_like_no_other_is_reported_with_where_names_are_listed():
    with pytest.raises(UserError, match=r"which timm does not have; see timm\.list_models\(\)"):
        check_backbone("???")


def test_auto_takes_the_package_that_is_installed():
    found = find_weights("tf_efficientnet_lite0", "auto", 0)
    assert found.kind == "package"
    assert found.path.is_file()
    assert found.identity == f"sha256:{hashlib.sha256(found.path.read_bytes()).hexdigest()}"


def test_auto_takes_the_hub_for_other_backbones():
    assert find_weights("resnet18", "auto", 0) == Weights("hub", None, "hub:resnet18")


def test_auto_takes_the_hub_where_the_package_is_not_installed(monkeypatch):
    monkeypatch.setitem(PACKAGES, "tf_efficientnet_lite0", "no_such_package_is_installed")
    assert find_weights("tf_efficientnet_lite0", "auto", 0).kind == "hub"


def test_the_hub_is_taken_where_it_is_asked_for():
    assert find_weights("tf_efficientnet_lite0", "hub", 0) == Weights("hub", None, "hub:tf_efficientnet_lite0")


def test_two_backbones_or_two_tags_have_other_weights_from_the_hub():
    names = ["resnet18", "resnet18.a1_in1k", "resnet34"]
    assert len({find_weights(name, "hub", 0).identity for name in names}) == 3


def test_random_weights_depend_on_the_seed():
    found = find_weights("resnet18", "random", 0)
    assert (found.kind, found.path) == ("random", None)
    assert found == find_weights("resnet18", "random", 0)
    assert found.identity != find_weights("resnet18", "random", 1).identity


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".PTH", ".SafeTensors"])
def test_a_file_of_weights_is_known_by_its_content(tmp_path, ending):
    first, same, other = (tmp_path / f"{name}{ending}" for name in ("first", "same", "other"))
    for path, content in ((first, b"weights"), (same, b"weights"), (other, b"others")):
        path.write_bytes(content)
    found = find_weights("resnet18", str(first), 0)
    assert (found.kind, found.path) == ("file", first)
    assert found.identity == find_weights("resnet34", str(same), 1).identity
    assert found.identity != find_weights("resnet18", str(other), 0).identity


@pytest.mark.parametrize("source", ["nowhere.pth", "nowhere.bin", "imagenet"])
def test_a_file_of_weights_that_does_not_exist_is_reported(source):
    with pytest.raises(UserError, match=f"model.weights is {source}, which does not exist; give auto, hub, random or"):
        find_weights("resnet18", source, 0)


def test_a_file_of_weights_with_another_ending_is_reported(tmp_path):
    (tmp_path / "weights.onnx").touch()
    with pytest.raises(UserError, match=r"weights\.onnx, which ends in none of \.safetensors, \.pth, \.pt, \.bin"):
        find_weights("resnet18", str(tmp_path / "weights.onnx"), 0)


def test_a_folder_is_no_file_of_weights(tmp_path):
    (tmp_path / "weights.pth").mkdir()
    with pytest.raises(UserError, match=r"model\.weights is .*weights\.pth"):
        find_weights("resnet18", str(tmp_path / "weights.pth"), 0)
