"""The same seed gives the same weights, bit for bit: on a CPU, and on a GPU with `deterministic: true`."""

import pytest
import torch

from tests.drawn_pictures import draw_pictures
from tests.stages.chains import recipe_on, run_chain

FOLLOWS = {"precompute": "", "train_head": "precompute", "fine_tune": "train_head"}
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize(
    ("device", "backbone"),
    [
        ("cpu", "test_resnet"),
        pytest.param("cuda", "test_resnet", marks=ON_GPU),
        pytest.param("cuda", "tf_efficientnet_lite0", marks=ON_GPU),
    ],
)
def test_two_trainings_end_with_equal_weights(device, backbone, fresh_workplace):
    networks = []
    for _ in range(2):
        workplace = fresh_workplace()
        recipe = recipe_on(
            draw_pictures(workplace.folder / "pictures"), device=device, deterministic=True, model__backbone=backbone,
            fine_tune__cycles=1, train_head__cycles=1,
        )  # fmt: skip
        networks.append(run_chain(workplace, recipe, FOLLOWS)["fine_tune"].network())
    one, other = networks
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
