from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from pipeline.data.augment import (
    Augmentation,
    Flip,
    augment,
    augmentation,
    blend,
    mix,
    skip,
    take_view,
    view_matrices,
    warp,
)

OFF = Augmentation(flip="none", rotate_degrees=0, zoom=1.0, crop=1.0, lighting=0, probability=1.0)
GEOMETRY = {
    "rotation": replace(OFF, rotate_degrees=25),
    "zoom": replace(OFF, zoom=1.6),
    "crop": replace(OFF, crop=0.6),
}
FULL = Augmentation(flip="all", rotate_degrees=10, zoom=1.1, crop=0.8, lighting=0.2, probability=0.75)


def noise(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def equal_images(count: int, size: int = 16) -> Tensor:
    return noise(1, size).expand(count, -1, -1, -1).clone()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eight_ways(image: Tensor) -> list[Tensor]:
    """An image (channels, size, size) in all flips and quarter turns, made without resampling."""
    turned = [torch.rot90(image, quarter, (1, 2)) for quarter in range(4)]
    return turned + [one.flip(2) for one in turned]


def which_way(image: Tensor, ways: list[Tensor]) -> int:
    matches = [way for way, expected in enumerate(ways) if torch.allclose(image, expected, atol=1e-4)]
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize("probability", [0.0, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_with_everything_off_nothing_changes(probability: float, channels: int) -> None:
    images = noise(8, channels=channels)
    varied = augment(images, replace(OFF, probability=probability), seeded(0))
    torch.testing.assert_close(varied, images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRY.values(), ids=GEOMETRY)
def test_with_probability_0_no_geometry_acts(geometry: Augmentation) -> None:
    images = noise(8)
    torch.testing.assert_close(augment(images, replace(geometry, probability=0), seeded(0)), images, rtol=0, atol=1e-5)


def test_with_probability_0_the_light_stays() -> None:
    images = noise(8)
    varied = augment(images, replace(OFF, lighting=0.5, probability=0), seeded(0))
    torch.testing.assert_close(varied, images, rtol=0, atol=1e-5)


def test_with_a_probability_between_some_images_change_and_some_do_not() -> None:
    images = noise(64)
    varied = augment(images, replace(OFF, rotate_degrees=25, probability=0.5), seeded(0))
    still = sum(torch.allclose(one, other, atol=1e-3) for one, other in zip(images, varied, strict=True))
    assert 20 < still < 44


def test_flip_none_never_flips() -> None:
    images = noise(64)
    torch.testing.assert_close(augment(images, replace(OFF, flip="none"), seeded(0)), images, rtol=0, atol=1e-5)


def test_sideways_swaps_left_and_right_and_nothing_else() -> None:
    image = noise(1)[0]
    varied = augment(image.expand(64, -1, -1, -1), replace(OFF, flip="sideways"), seeded(0))
    found = [which_way(one, [image, image.flip(2)]) for one in varied]
    assert 16 < sum(found) < 48


def test_all_gives_every_one_of_the_eight_flips_and_quarter_turns_about_as_often() -> None:
    image = noise(1)[0]
    varied = augment(image.expand(400, -1, -1, -1), replace(OFF, flip="all"), seeded(0))
    counts = torch.bincount(torch.tensor([which_way(one, eight_ways(image)) for one in varied]), minlength=8)
    assert counts.min() > 25
    assert counts.max() < 80


@pytest.mark.parametrize(
    "one",
    [*GEOMETRY.values(), replace(OFF, lighting=0.4)],
    ids=[*GEOMETRY, "lighting"],
)
def test_two_equal_images_in_a_batch_are_augmented_differently(one: Augmentation) -> None:
    varied = augment(equal_images(6), one, seeded(0))
    for first in range(6):
        for second in range(first):
            assert not torch.allclose(varied[first], varied[second], atol=1e-3)


def test_the_same_seed_varies_in_the_same_way_and_another_in_another() -> None:
    images = noise(8)
    first = augment(images, FULL, seeded(1))
    assert torch.equal(first, augment(images, FULL, seeded(1)))
    assert not torch.allclose(first, augment(images, FULL, seeded(2)), atol=1e-3)


def test_torchs_own_random_numbers_are_neither_used_nor_moved() -> None:
    images = noise(4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(images, FULL, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(augment(images, FULL, seeded(0)), first)


def test_a_generator_moves_on_from_batch_to_batch() -> None:
    images, generator = noise(8), seeded(0)
    first = augment(images, FULL, generator)
    assert not torch.allclose(first, augment(images, FULL, generator), atol=1e-3)


@pytest.mark.parametrize("lighting", [0.2, 1.0, 3.0])
def test_values_stay_within_0_and_1_whatever_the_light(lighting: float) -> None:
    varied = augment(noise(64), replace(OFF, lighting=lighting), seeded(0))
    assert varied.min() >= 0
    assert varied.max() <= 1


def test_light_brightens_some_images_and_darkens_others_within_its_limit() -> None:
    grey = torch.full((64, 3, 8, 8), 0.5)
    shifts = augment(grey, replace(OFF, lighting=0.4), seeded(0)).mean(dim=(1, 2, 3)) - 0.5
    assert shifts.min() < -0.1
    assert shifts.max() > 0.1
    assert shifts.abs().max() <= 0.2 + 1e-5


def test_light_stretches_the_contrast_of_some_images_and_flattens_that_of_others() -> None:
    images = 0.5 + 0.1 * (noise(64) - 0.5)
    ratios = augment(images, replace(OFF, lighting=0.4), seeded(0)).std(dim=(1, 2, 3)) / images.std(dim=(1, 2, 3))
    assert 1 / 1.4 - 1e-3 <= ratios.min() < 0.85
    assert 1.15 < ratios.max() <= 1.4 + 1e-3


def test_a_rotation_by_0_degrees_is_exact() -> None:
    images = noise(4, size=33)
    varied = augment(images, replace(OFF, rotate_degrees=0, probability=1), seeded(0))
    torch.testing.assert_close(varied, images, rtol=0, atol=1e-5)


def test_rotation_keeps_the_middle_and_turns_no_further_than_asked() -> None:
    size, limit = 65, 20.0
    image = torch.zeros(1, 1, size, size)
    image[..., size // 2, size - 8] = 1  # a dot to the right of the middle
    blurred = torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)
    varied = augment(blurred.expand(100, -1, -1, -1), replace(OFF, rotate_degrees=limit), seeded(0))
    axis = torch.arange(size) - size // 2
    weight = varied.sum(dim=(1, 2, 3))
    x = (varied * axis).sum(dim=(1, 2, 3)) / weight
    y = (varied * axis.view(-1, 1)).sum(dim=(1, 2, 3)) / weight
    degrees = torch.rad2deg(torch.atan2(y, x))
    assert degrees.abs().max() <= limit + 0.5
    assert degrees.min() < -limit / 2
    assert degrees.max() > limit / 2
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((100,), size / 2 - 8 + 0.5), rtol=0, atol=0.5)


def test_zoom_magnifies_about_the_middle_and_never_shrinks() -> None:
    axis = torch.linspace(-1, 1, 33)
    cone = (axis.view(-1, 1).abs() + axis.abs()).view(1, 1, 33, 33).expand(100, -1, -1, -1) / 2
    varied = augment(cone, replace(OFF, zoom=1.5), seeded(0))
    corner = varied[:, 0, 0, 0]
    assert corner.max() <= 1 + 1e-5
    assert corner.min() >= 1 / 1.5 - 0.02
    assert corner.min() < 0.75
    torch.testing.assert_close(varied[:, 0, 16, 16], torch.zeros(100), rtol=0, atol=1e-5)


def test_a_crop_lies_anywhere_but_within_the_image() -> None:
    size = 32
    left_to_right = torch.linspace(0, 1, size).view(1, 1, 1, size).expand(200, 1, size, size)
    row = augment(left_to_right, replace(OFF, crop=0.5), seeded(0))[:, 0, size // 2]
    kept = row[:, -1] - row[:, 0]
    middle = (row[:, -1] + row[:, 0]) / 2
    assert kept.min() >= 0.5 - 0.02
    assert kept.max() > 0.9
    assert middle.min() < 0.35
    assert middle.max() > 0.65
    assert (row.diff() > 0).all()  # reflection at an edge would turn the ramp round


def test_beyond_its_edges_an_image_is_reflected() -> None:
    white = torch.ones(32, 3, 32, 32)
    rotated = replace(OFF, rotate_degrees=45, flip="all")
    torch.testing.assert_close(augment(white, rotated, seeded(0)), white, rtol=0, atol=1e-5)


def test_the_shape_and_type_of_a_batch_are_kept() -> None:
    varied = augment(noise(5, size=20, channels=1), FULL, seeded(0))
    assert varied.shape == (5, 1, 20, 20)
    assert varied.dtype == torch.float32


@pytest.mark.parametrize("flip", ["none", "sideways", "all"])
def test_the_first_view_is_the_image_as_it_is(flip: Flip) -> None:
    assert view_matrices(flip, 0.8, 12)[0].tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("flip", "views"), [("none", 1), ("sideways", 2), ("all", 8)])
def test_the_views_are_the_flips_allowed_and_then_the_corners(flip: Flip, views: int) -> None:
    assert len(view_matrices(flip, 1.0, 99)) == views
    assert len(view_matrices(flip, 0.8, 99)) == views + 4


@pytest.mark.parametrize("views", [1, 2, 3, 8, 10])
def test_no_more_views_come_than_are_asked_for(views: int) -> None:
    assert len(view_matrices("all", 0.8, views)) == views


def test_the_second_sideways_view_is_the_mirror_image() -> None:
    image = noise(1)
    seen = warp(image.expand(2, -1, -1, -1), view_matrices("sideways", 1.0, 2))
    torch.testing.assert_close(seen[1], image[0].flip(2), rtol=0, atol=1e-5)


def test_the_eight_views_of_all_are_the_eight_flips_and_quarter_turns() -> None:
    image = noise(1)[0]
    seen = warp(image.expand(8, -1, -1, -1), view_matrices("all", 1.0, 8))
    assert {which_way(one, eight_ways(image)) for one in seen} == set(range(8))


def test_the_corner_views_show_the_four_corners() -> None:
    image = noise(1, size=16)[0]
    seen = warp(image.expand(4, -1, -1, -1), view_matrices("none", 0.5, 5)[1:])
    corners = [image[:, top : top + 8, left : left + 8] for top in (0, 8) for left in (0, 8)]
    enlarged = torch.nn.functional.interpolate(torch.stack(corners), size=16, mode="bilinear", align_corners=False)
    found = []
    for view in seen:
        # The rim is left out, where the neighbours of a corner's last pixels are seen in one and not in the other.
        rim = (slice(None), slice(2, -2), slice(2, -2))
        found += [index for index, corner in enumerate(enlarged) if torch.allclose(view[rim], corner[rim], atol=1e-4)]
    assert sorted(found) == [0, 1, 2, 3]


def test_strength_multiplies_how_strongly_images_are_augmented_and_nothing_else() -> None:
    settings = {"flip": "all", "rotate_degrees": 10.0, "zoom": 1.1, "crop": 0.8, "lighting": 0.2, "probability": 0.75}
    assert augmentation(1.0, **settings) == FULL
    assert augmentation(0.0, **settings) == replace(FULL, rotate_degrees=0.0, zoom=1.0, crop=1.0, lighting=0.0)
    twice = augmentation(2.0, **settings)
    assert (twice.rotate_degrees, twice.lighting) == (20.0, 0.4)
    assert (twice.zoom, twice.crop) == pytest.approx((1.2, 0.6))
    assert (twice.flip, twice.probability) == (FULL.flip, FULL.probability)


def batch(count: int = 6, height: int = 12, width: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator), torch.arange(count) % 4


def random_for(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)], ids=str)
def test_the_same_random_numbers_mix_in_the_same_way_and_others_in_another(alphas: tuple[float, float]) -> None:
    images, targets = batch()
    first, again, other = (mix(images, targets, 4, *alphas, random_for(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_the_share_that_is_kept_is_given_and_blends_other_values_as_the_targets(alphas: tuple[float, float]) -> None:
    images, targets = batch()
    _, shares, kept = mix(images, targets, 4, *alphas, random_for())
    whole = torch.eye(4)[targets]
    torch.testing.assert_close(blend(whole, kept), shares)
    assert 0 < kept < 1
    assert torch.equal(blend(torch.tensor([1.0, 2.0, 4.0]), 0.75), torch.tensor([1.75, 1.75, 3.5]))


def test_mixup_blends_each_picture_with_the_one_before_it_as_much_as_their_targets() -> None:
    images, targets = batch()
    mixed, shares, _ = mix(images, targets, 4, 0.4, 0, random_for())
    kept = float(shares[1, targets[1]])
    assert 0 < kept < 1
    torch.testing.assert_close(mixed, images * kept + images.roll(1, 0) * (1 - kept))
    assert float(shares[1, targets[0]]) == pytest.approx(1 - kept)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_puts_a_box_of_the_one_before_into_each_picture_and_counts_its_pixels(seed: int) -> None:
    images, targets = batch()
    mixed, shares, _ = mix(images, targets, 4, 0, 1.0, random_for(seed))
    other = (mixed != images).any(1)[1]
    assert torch.equal(mixed[1][:, other], images[0][:, other])
    rows, columns = other.any(1).sum(), other.any(0).sum()
    assert rows * columns == other.sum()
    assert float(shares[1, targets[0]]) == pytest.approx(float(other.float().mean()))


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_shares_add_up_to_one_and_the_pictures_given_stay_as_they_were(alphas: tuple[float, float]) -> None:
    images, targets = batch()
    before = images.clone()
    _, shares, _ = mix(images, targets, 4, *alphas, random_for())
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    assert torch.equal(images, before)


def test_with_both_on_each_has_about_half_of_the_batches() -> None:
    images, targets = batch()
    random = random_for()
    cut = [bool((mix(images, targets, 4, 0.4, 1.0, random)[0] == images).any()) for _ in range(200)]
    assert 60 < sum(cut) < 140


@pytest.mark.parametrize(("ours", "theirs"), [((0.5, 0.0), v2.MixUp), ((0.0, 0.5), v2.CutMix)], ids=["mixup", "cutmix"])
def test_what_is_kept_is_spread_as_torchvisions(ours: tuple[float, float], theirs: type[v2.MixUp]) -> None:
    images, targets = batch(2, 16, 16)
    random = random_for()
    torch.manual_seed(0)
    of_theirs = theirs(alpha=0.5, num_classes=4)
    kept = np.sort([float(mix(images, targets, 4, *ours, random)[1][0, 0]) for _ in range(600)])
    kept_by_theirs = np.sort([float(of_theirs(images, targets)[1][0, 0]) for _ in range(600)])
    assert np.abs(kept - kept_by_theirs).mean() < 0.05


def test_flips_and_turns_are_exact_and_the_views_that_warping_gives():
    images = noise(2)
    ways = view_matrices("all", 1.0, 8)
    for matrix in ways:
        seen = take_view(images, matrix)
        torch.testing.assert_close(seen, warp(images, matrix.expand(2, 2, 3)), rtol=0, atol=1e-5)
        assert torch.equal(seen.flatten(1).sort().values, images.flatten(1).sort().values), "no pixel is resampled"
    assert len({take_view(images, matrix).sum((0, 1)).argmax().item() for matrix in ways}) > 4


def test_corners_are_resampled():
    images, corner = noise(2), view_matrices("none", 0.8, 2)[1]
    torch.testing.assert_close(take_view(images, corner), warp(images, corner.expand(2, 2, 3)))


def test_a_tilt_leaves_the_middle_and_brings_one_edge_nearer() -> None:
    ramp = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33).contiguous()
    upright = torch.eye(2, 3).expand(1, 2, 3)
    assert torch.equal(warp(ramp, upright, torch.zeros(1, 2)), warp(ramp, upright))
    tilted = warp(ramp, upright, torch.tensor([[0.2, 0.0]]))[0, 0, 16]
    assert tilted[16] == pytest.approx(0, abs=1e-6)
    assert tilted[24] == pytest.approx(float(ramp[0, 0, 0, 24]) / (1 + 0.2 * 16 / 33), abs=0.02)


def test_a_box_of_some_pictures_is_blanked_with_their_mean() -> None:
    images = torch.rand(64, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    varied = augment(images.clone(), replace(OFF, erase=0.5), torch.Generator().manual_seed(0))
    changed = (varied - images).abs().amax(1) > 1e-3
    shares = changed.float().mean((1, 2))
    assert 20 <= int((shares > 0).sum()) <= 44
    assert float(shares.max()) < 0.25
    one = int(shares.argmax())
    assert varied[one, 0][changed[one]].unique().numel() == 1
    assert float(varied[one, 0][changed[one]][0]) == pytest.approx(float(images[one].mean()), abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_trivial_augmentation_follows_from_the_generator_and_leaves_other_random_numbers_alone(channels: int) -> None:
    images = torch.rand(32, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    how = replace(OFF, trivial=True)
    before = torch.get_rng_state()
    varied = augment(images.clone(), how, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(varied, augment(images.clone(), how, torch.Generator().manual_seed(0)))
    assert not torch.equal(varied, augment(images.clone(), how, torch.Generator().manual_seed(5)))
    assert varied.shape == images.shape
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 1


def test_skipping_draws_what_augmenting_draws() -> None:
    how = replace(FULL, perspective=0.1, erase=0.3, trivial=True)
    skipped, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    skip(6, how, skipped)
    augment(torch.rand(6, 3, 8, 8), how, drawn)
    assert torch.equal(skipped.get_state(), drawn.get_state())
