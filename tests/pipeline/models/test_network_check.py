import pytest
import torch

from pipeline.models.network_check import check_network
from pipeline.system.errors import UserError


@pytest.mark.parametrize(
    ("backbone", "sizes_px", "cut"),
    [
        ("test_resnet", (64, 96), "head"),
        ("test_resnet", (64, 64), "late"),
        ("test_vit", (160, 96), "head"),
        ("tf_efficientnet_lite0", (64, 96), "late"),
    ],
)
def test_a_backbone_that_does_what_is_asked_is_taken_and_nothing_is_drawn(backbone, sizes_px, cut):
    before = torch.random.get_rng_state()
    check_network(backbone, sizes_px, cut)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("backbone", "sizes_px", "words"),
    [
        ("test_vit", (160, 100), "takes no image of 100 px"),
        ("test_vit", (100, 160), "takes no image of 100 px"),
        ("mixer_s16_224", (224, 256), "takes no image of 256 px"),
    ],
)
def test_a_size_that_the_backbone_refuses_is_reported(backbone, sizes_px, words):
    with pytest.raises(UserError, match=f"model.backbone {backbone} {words}"):
        check_network(backbone, sizes_px, "head")


def test_weights_that_would_not_fit_the_second_size_are_reported(monkeypatch):
    sizes = iter([{"body.positions": torch.Size([4])}, {"body.positions": torch.Size([9])}])
    monkeypatch.setattr("pipeline.models.network_check._shapes", lambda network: next(sizes))
    with pytest.raises(UserError, match=r"cannot go on at 96 px; set resize\.image_px to 64, as precompute\.image_px"):
        check_network("test_resnet", (64, 96), "head")


def test_a_backbone_that_cannot_be_cut_is_reported(monkeypatch):
    def refuse(network, groups, image_px):
        raise RuntimeError

    monkeypatch.setattr("pipeline.models.cut._cut_body", refuse)
    with pytest.raises(UserError, match=r"precompute\.cut is late, but this backbone cannot be cut"):
        check_network("test_resnet", (64, 96), "late")
