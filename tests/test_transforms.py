import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sepconv.config.keys import Augment
from sepconv.data.transforms import (
    DEVIATION,
    SCALE,
    AlternatingFlip,
    Augmenter,
    Draws,
    classify_views,
    normalize_moments,
    random_affine,
    random_crop,
    random_cutout,
    random_flip,
    reflected,
)
from sepconv.ranks import Ranks


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    pixels = torch.randint(1, 256, (256, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return pixels.permute(0, 3, 1, 2)


def test_crop_is_a_window_of_the_padded_image(images: Tensor, generator: torch.Generator) -> None:
    cropped = random_crop(images, 2, Draws(generator, images.device, len(images)))
    windows = F.pad(images, (2, 2, 2, 2)).unfold(2, 9, 1).unfold(3, 7, 1)  # (B, C, 5, 5, 9, 7)
    match = (windows == cropped[:, :, None, None]).all(1).flatten(3).all(3)  # (B, 5, 5): windows that it is
    assert match.flatten(1).any(1).all()
    assert match.any(0).all()  # every place occurs, the corners too


def test_a_reflecting_crop_is_a_window_of_the_reflected_image(images: Tensor, generator: torch.Generator) -> None:
    cropped = random_crop(images, 2, Draws(generator, images.device, len(images)), reflect=True)
    padded = F.pad(images.float(), (2, 2, 2, 2), mode="reflect").byte()
    match = (padded.unfold(2, 9, 1).unfold(3, 7, 1) == cropped[:, :, None, None]).all(1).flatten(3).all(3)
    assert match.flatten(1).any(1).all()
    assert match.any(0).all()


@pytest.mark.parametrize(("side", "expected"), [(3, [2, 1, 0, 1, 2, 1, 0]), (2, [0, 1, 0, 1, 0, 1]), (1, [0] * 5)])
def test_a_reflection_of_any_width(side: int, expected: list[int]) -> None:
    assert reflected(2, side, torch.device("cpu")).tolist() == expected


def test_alternating_flips(images: Tensor, generator: torch.Generator) -> None:
    """Each visit shows the other side; about half of the images begin mirrored; others' visits change nothing."""
    flip = AlternatingFlip(1000, generator)
    rows = torch.randperm(1000, generator=generator)[:256]
    seen = [flip(images, rows) for _ in range(2)]
    flip(images[:7], torch.arange(1000)[~torch.isin(torch.arange(1000), rows)][:7])
    seen.append(flip(images, rows))
    for one, other in pairwise(seen):
        assert torch.equal(one, other.flip(-1))
    same = (seen[0] == images).flatten(1).all(1)
    assert 90 < same.sum() < 166
    assert torch.equal(seen[0][same], images[same])


def test_views() -> None:
    """The mean of logits over an image, its mirror image and, half as much, both of them moved by a pixel."""
    images = torch.arange(9.0).view(1, 1, 3, 3).expand(2, 2, 3, 3)
    for kind, shares in (("mirror", [0.5] * 2), ("translate", [0.25] * 2 + [0.125] * 4)):
        seen: list[Tensor] = []

        def classify(view: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(view)
            return F.one_hot(torch.tensor(len(seen) - 1), 6).expand(len(view), 6)

        plain, mean = classify_views(classify, images, kind)
        assert torch.equal(plain, F.one_hot(torch.zeros(2, dtype=torch.int64), 6).float())
        assert mean.tolist() == [shares + [0.0] * (6 - len(shares))] * 2
        assert torch.equal(seen[0], images)
        for one, other in zip(seen[::2], seen[1::2], strict=True):
            assert torch.equal(one.flip(-1), other)
    moved = [view[0, 0].tolist() for view in seen[2::2]]
    assert moved == [[[4, 3, 4], [1, 0, 1], [4, 3, 4]], [[4, 5, 4], [7, 8, 7], [4, 5, 4]]]


def test_flip_mirrors_half_of_the_images(images: Tensor, generator: torch.Generator) -> None:
    flipped = random_flip(images, Draws(generator, images.device, len(images)))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 90 < same.sum() < 166  # 4.7 standard deviations about 128


def test_affine_without_amounts_is_the_identity(images: Tensor, generator: torch.Generator) -> None:
    assert torch.allclose(
        random_affine(images, 0, 0, Draws(generator, images.device, len(images))), images.float(), atol=1e-3
    )


def test_affine_against_torchs_grid(images: Tensor, generator: torch.Generator) -> None:
    state = generator.get_state()
    changed = random_affine(images, 20, 2, Draws(generator, images.device, len(images)))
    generator.set_state(state)
    angle, right, down = (torch.rand(3, len(images), generator=generator) * 2 - 1).unbind()
    cosine, sine = angle.mul(math.radians(20)).cos(), angle.mul(math.radians(20)).sin()
    rows = [[cosine, -sine * 9 / 7, right * 4 / 7], [sine * 7 / 9, cosine, down * 4 / 9]]
    theta = torch.stack([torch.stack(row, -1) for row in rows], -2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    torch.testing.assert_close(changed, F.grid_sample(images.float(), grid, align_corners=False), rtol=0, atol=0.05)


def test_shift_moves_rigidly(generator: torch.Generator) -> None:
    """A bright spot's centre of mass moves by up to the amount, and its mass stays."""
    images = torch.zeros(400, 1, 21, 15, dtype=torch.uint8)
    images[:, :, 10, 7] = 200
    moved = random_affine(images, 0, 3, Draws(generator, images.device, len(images)))[:, 0]
    mass = moved.sum((1, 2))
    assert torch.allclose(mass, torch.full_like(mass, 200), rtol=1e-3)
    rows = (moved.sum(2) * torch.arange(21)).sum(1) / mass - 10
    columns = (moved.sum(1) * torch.arange(15)).sum(1) / mass - 7
    for offsets in (rows, columns):
        assert 2.5 < offsets.abs().max() <= 3.001
        assert abs(offsets.mean()) < 0.4


def test_rotation_keeps_the_distance_from_the_centre(generator: torch.Generator) -> None:
    images = torch.zeros(400, 1, 21, 15, dtype=torch.uint8)
    images[:, :, 4, 7] = 200  # 6 pixels above the centre
    turned = random_affine(images, 30, 0, Draws(generator, images.device, len(images)))[:, 0]
    mass = turned.sum((1, 2))
    rows = (turned.sum(2) * torch.arange(21)).sum(1) / mass - 10
    columns = (turned.sum(1) * torch.arange(15)).sum(1) / mass - 7
    assert torch.allclose(rows.hypot(columns), torch.tensor(6.0), atol=0.25)
    angles = torch.atan2(columns, -rows).rad2deg()
    assert 25 < angles.abs().max() < 31
    assert abs(angles.mean()) < 3


def blobs(count: int, height: int = 28, width: int = 28) -> Tensor:
    """Normal distributions of ink, with centres, sizes and slants of their own: (count, 1, height, width)."""
    draws = np.random.default_rng(0).uniform(-1, 1, (count, 5))
    y, x = np.mgrid[:height, :width].astype(float)
    images = []
    for right, down, wide, high, slant in draws:
        v = (y - (height - 1) / 2 - 2 * down) / (height / 2)
        u = (x - (width - 1) / 2 - 2 * right) / (width / 2) - 0.4 * slant * v
        images.append(np.exp(-(u**2) / (2 * (0.24 + 0.04 * wide) ** 2) - v**2 / (2 * (0.32 + 0.05 * high) ** 2)))
    return torch.from_numpy(np.stack(images)[:, None] * 255).byte()


def moments(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x and y over the ink of `image` (H, W), the sides from -1 to 1."""
    y, x = ((np.arange(side) + 0.5) * 2 / side - 1 for side in image.shape)
    places = np.stack(np.meshgrid(x, y)).reshape(2, -1)
    ink = image.double().numpy().ravel()
    return np.average(places, axis=1, weights=ink), np.cov(places, aweights=ink, ddof=0)


@pytest.mark.parametrize("sides", [(28, 28), (32, 24)])
def test_moments_become_alike(sides: tuple[int, int]) -> None:
    before = blobs(20, *sides)
    after = normalize_moments(before)
    assert after.shape == before.shape
    assert after.dtype == torch.float32
    spread = [np.stack([moments(image[0])[1] for image in images]).std(0) for images in (before, after)]
    for image in after:
        mean, covariance = moments(image[0])
        np.testing.assert_allclose(mean, 0, atol=0.02)
        np.testing.assert_allclose(np.sqrt(np.diag(covariance)), DEVIATION, rtol=0.06)  # interpolation blurs a little
        assert abs(covariance[0, 1]) < 0.05 * DEVIATION[0] * DEVIATION[1]
    assert (spread[1] < 0.2 * spread[0]).all()


def test_moments_of_what_is_alike_already() -> None:
    once = normalize_moments(blobs(5))
    torch.testing.assert_close(normalize_moments(once), once, atol=8, rtol=0)  # of 255


def test_scale_has_limits() -> None:
    """A thin stroke is not blown up to the width of other digits."""
    stroke = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    stroke[..., 4:24, 12:16] = 255
    wide, high = np.sqrt(np.diag(moments(normalize_moments(stroke)[0, 0])[1]) / np.diag(moments(stroke[0, 0])[1]))
    assert wide == pytest.approx(1 / SCALE[0], rel=0.1)
    assert high == pytest.approx(DEVIATION[1] / (20 / 28 / math.sqrt(3)), rel=0.03)


def test_moments_of_an_empty_image_and_of_colours() -> None:
    assert normalize_moments(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).equal(torch.zeros(2, 1, 8, 8))
    grey = blobs(3)
    colours = normalize_moments(torch.cat([grey, grey // 2, 0 * grey], dim=1))
    torch.testing.assert_close(colours[:, :1], normalize_moments(grey), atol=2, rtol=0)
    assert not colours[:, 2].any()


def test_cutout_fills_one_square(images: Tensor, generator: torch.Generator) -> None:
    fill = torch.tensor([0.0, 100.0, 200.0])
    cut = random_cutout(images, 3, Draws(generator, images.device, len(images)), fill)
    changed = (cut != images).any(1)
    assert torch.equal(cut.permute(0, 2, 3, 1)[changed], fill.byte().expand(int(changed.sum()), 3))
    sizes = changed.flatten(1).sum(1)
    assert sizes.max() == 9
    assert sizes.min() >= 4  # a corner's square reaches two pixels in
    assert changed.any(0).all()


def test_each_sample_draws_its_own(generator: torch.Generator) -> None:
    one = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8).expand(64, -1, -1, -1)
    settings = Augment(crop=3, flip=True, shift=1, rotate=10, cutout=4)
    changed = Augmenter(settings, 64, generator)(one, torch.arange(64), torch.zeros(3))
    assert len(changed.flatten(1).unique(dim=0)) == 64


def test_same_generator_state_same_images(images: Tensor, generator: torch.Generator) -> None:
    settings = Augment(crop=2, flip=True, shift=1, rotate=10, cutout=4)
    augment, state, rows = Augmenter(settings, 256, generator), generator.get_state(), torch.arange(256)
    first = augment(images, rows, torch.zeros(3))
    generator.set_state(state)
    assert torch.equal(augment(images, rows, torch.zeros(3)), first)
    assert first.min() >= 0
    assert first.max() <= 255


@pytest.mark.parametrize("alternate", [False, True])
def test_the_shares_of_a_batch_are_the_batch(images: Tensor, alternate: bool) -> None:
    """Images are changed as within the whole batch, visit by visit, whichever process has them."""
    settings = Augment(crop=2, flip=True, alternate=alternate, shift=1, rotate=10, cutout=4)
    whole, *parts = (Augmenter(settings, 256, torch.Generator().manual_seed(2)) for _ in range(3))
    for rows in torch.randperm(256, generator=torch.Generator().manual_seed(3)).split(101):
        shares = [Ranks(rank, 2).share(len(rows)) for rank in range(2)]
        changed = [augment(images[rows[share]], rows, torch.zeros(3), share)
                   for augment, share in zip(parts, shares, strict=True)]  # fmt: skip
        assert torch.equal(torch.cat(changed), whole(images[rows], rows, torch.zeros(3)))


def test_no_augmentation_is_the_same_tensor(images: Tensor, generator: torch.Generator) -> None:
    state = generator.get_state()
    assert Augmenter(Augment(), 256, generator)(images, torch.arange(256), torch.zeros(3)) is images
    assert torch.equal(generator.get_state(), state)
