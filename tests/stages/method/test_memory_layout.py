"""A network is laid out in memory for as much as it will see: on a GPU long work and short work want different ways."""

import pytest
import torch

from pipeline.models.network import Network
from tests.stages.chains import run_stage_on


@pytest.fixture
def told(monkeypatch) -> list[int]:
    """The pixels that networks are laid out for, one after the other."""
    pixels: list[int] = []
    move_to = Network.move_to

    def noted(network: Network, device: torch.device, count: int) -> Network:
        pixels.append(count)
        return move_to(network, device, count)

    monkeypatch.setattr(Network, "move_to", noted)
    return pixels


@pytest.mark.parametrize(
    ("stage", "upstream", "pictures", "image_px"),
    [
        ("precompute", None, 72, 32),
        ("resize", "fine_tune", 4 * 33, 40),  # four epochs of 0.9 of the training pictures
        ("evaluate", "resize", 72, 40),
    ],
)
def test_a_stage_lays_its_network_out_for_all_pictures_that_it_will_see(
    chain, on_chain, told, stage, upstream, pictures, image_px
):
    run_stage_on(stage, chain.other_recipe(reuse="never"), chain[upstream] if upstream else None)
    assert told[0] == pictures * image_px**2
