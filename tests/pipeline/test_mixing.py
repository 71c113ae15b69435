import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.mixing import blend, mix


def batch(count: int = 6, height: int = 12, width: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator), torch.arange(count) % 4


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)], ids=str)
def test_the_same_random_numbers_mix_in_the_same_way_and_others_in_another(alphas: tuple[float, float]) -> None:
    images, targets = batch()
    first, again, other = (mix(images, targets, 4, *alphas, seeded(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_the_share_that_is_kept_is_told_and_blends_other_values_as_the_targets(alphas: tuple[float, float]) -> None:
    images, targets = batch()
    _, shares, kept = mix(images, targets, 4, *alphas, seeded())
    whole = torch.eye(4)[targets]
    torch.testing.assert_close(blend(whole, kept), shares)
    assert 0 < kept < 1
    assert torch.equal(blend(torch.tensor([1.0, 2.0, 4.0]), 0.75), torch.tensor([1.75, 1.75, 3.5]))


def test_mixup_blends_each_picture_with_the_one_before_it_as_much_as_their_targets() -> None:
    images, targets = batch()
    mixed, shares, _ = mix(images, targets, 4, 0.4, 0, seeded())
    kept = float(shares[1, targets[1]])
    assert 0 < kept < 1
    torch.testing.assert_close(mixed, images * kept + images.roll(1, 0) * (1 - kept))
    assert float(shares[1, targets[0]]) == pytest.approx(1 - kept)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_puts_a_box_of_the_one_before_into_each_picture_and_counts_its_pixels(seed: int) -> None:
    images, targets = batch()
    mixed, shares, _ = mix(images, targets, 4, 0, 1.0, seeded(seed))
    other = (mixed != images).any(1)[1]
    assert torch.equal(mixed[1][:, other], images[0][:, other])
    rows, columns = other.any(1).sum(), other.any(0).sum()
    assert rows * columns == other.sum()
    assert float(shares[1, targets[0]]) == pytest.approx(float(other.float().mean()))


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_shares_add_up_to_one_and_the_pictures_given_stay_as_they_were(alphas: tuple[float, float]) -> None:
    images, targets = batch()
    before = images.clone()
    _, shares, _ = mix(images, targets, 4, *alphas, seeded())
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert torch.equal(images, before)


def test_with_both_on_each_has_about_half_of_the_batches() -> None:
    images, targets = batch()
    random = seeded()
    cut = [bool((mix(images, targets, 4, 0.4, 1.0, random)[0] == images).any()) for _ in range(200)]
    assert 60 < sum(cut) < 140


@pytest.mark.parametrize(("ours", "theirs"), [((0.5, 0.0), v2.MixUp), ((0.0, 0.5), v2.CutMix)], ids=["mixup", "cutmix"])
def test_what_is_kept_is_spread_as_torchvisions(ours: tuple[float, float], theirs: type[v2.MixUp]) -> None:
    images, targets = batch(2, 16, 16)
    random = seeded()
    torch.manual_seed(0)
    of_theirs = theirs(alpha=0.5, num_classes=4)
    kept = np.sort([float(mix(images, targets, 4, *ours, random)[1][0, 0]) for _ in range(600)])
    kept_by_theirs = np.sort([float(of_theirs(images, targets)[1][0, 0]) for _ in range(600)])
    assert np.abs(kept - kept_by_theirs).mean() < 0.05
