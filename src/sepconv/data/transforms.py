"""Batched augmentation: each sample draws its own parameters, on the batch's device, without a loop.

torchvision's v2 transforms draw one set of parameters per call, for the whole batch; here a call takes a batch
and draws one set per sample. No function synchronises with the host or makes a shape that depends on data.
Images are (B, C, H, W); pixel values are kept in their range, 0 to 255.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepconv.config.keys import Augment

WHOLE = slice(None)  # of a batch


class Augmenter:
    """Changes training images as `settings` asks, each its own way: flips, a crop, a shift and rotation, a cutout.

    Args:
        count: images of the data set.
        generator: draws all that is random; the device is its own.
    """

    def __init__(self, settings: Augment, count: int, generator: torch.Generator) -> None:
        self.settings, self.generator = settings, generator
        self.alternation = AlternatingFlip(count, generator) if settings.alternate else None

    def __call__(self, images: Tensor, rows: Tensor, fill: Tensor, share: slice = WHOLE) -> Tensor:
        """Augments a batch, or a share of it, whose images are then changed as they are within the whole.

        Args:
            images: uint8 (B, C, H, W), those of `rows[share]`.
            rows: the places of the batch's images in the data set.
            fill: (C,), the colour of a cut-out square, 0 to 255.

        Returns:
            (B, C, H, W), uint8 where nothing interpolates, else float32.
        """
        settings, draws = self.settings, Draws(self.generator, images.device, len(rows), share)
        if self.alternation is not None:
            images = self.alternation(images, rows, share)
        if settings.crop:
            images = random_crop(images, settings.crop, draws, settings.reflect)
        if settings.flip and self.alternation is None:
            images = random_flip(images, draws)
        if settings.shift or settings.rotate:
            images = random_affine(images, settings.rotate, settings.shift, draws)
        if settings.cutout:
            images = random_cutout(images, settings.cutout, draws, fill)
        return images

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.alternation is None else {"mirrored": self.alternation.mirrored}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        if self.alternation is not None:
            self.alternation.mirrored.copy_(state_dict["mirrored"])


class Draws:
    """Random numbers for each image of a batch of `size`, or of a `share` of it: those it has within the whole.

    Processes that share a batch so draw the same as one that has all of it.
    """

    def __init__(self, generator: torch.Generator, device: torch.device, size: int, share: slice = WHOLE) -> None:
        self.generator, self.device, self.size, self.share = generator, device, size, share

    def uniform(self, count: int, low: float, high: float) -> Tensor:
        """`count` draws for each image: (count, B), uniform from `low` to `high`."""
        draws = torch.rand(count, self.size, generator=self.generator, device=self.device)
        return draws[:, self.share] * (high - low) + low

    def integers(self, count: int, below: int) -> Tensor:
        """`count` draws for each image: (count, B), from 0 to `below` - 1."""
        draws = torch.randint(below, (count, self.size), generator=self.generator, device=self.device)
        return draws[:, self.share]


def random_crop(images: Tensor, padding: int, draws: Draws, reflect: bool = False) -> Tensor:
    """Pads with `padding` pixels and crops back at a random place (He et al. 2016, section 4.2).

    Args:
        reflect: pad with the image's own pixels, mirrored at its border; else with zeros.
    """
    batch, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1)
    if reflect:
        for axis, side in ((1, height), (2, width)):
            pixels = pixels.index_select(axis, reflected(padding, side, images.device))
    else:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))
    corner = draws.integers(2, 2 * padding + 1)
    rows = corner[0, :, None] + torch.arange(height, device=images.device)
    columns = corner[1, :, None] + torch.arange(width, device=images.device)
    # One row index per output pixel into the flattened pixels: a single gather, channels together.
    stride = width + 2 * padding
    first = torch.arange(batch, device=images.device) * (height + 2 * padding) * stride
    index = first[:, None, None] + rows[:, :, None] * stride + columns[:, None, :]
    cropped = pixels.reshape(-1, channels).index_select(0, index.flatten())
    return cropped.view(batch, height, width, channels).permute(0, 3, 1, 2)


def reflected(padding: int, side: int, device: torch.device) -> Tensor:
    """Where, along an axis of `side` pixels, those of the padded one come from: its ends are mirrors, not repeated."""
    positions = torch.arange(-padding, side + padding, device=device).remainder(max(2 * (side - 1), 1))
    return side - 1 - (side - 1 - positions).abs()


def random_flip(images: Tensor, draws: Draws) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = draws.uniform(1, 0, 1)[0] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


class AlternatingFlip:
    """Mirrors each image at every other visit, beginning with its first or its second at random.

    Two visits in a row see both sides of an image, unless they are within one batch; random flips show the same side
    twice half of the time.
    Source: Jordan, arXiv 2404.00498, section 3.6.

    Args:
        count: images of the data set.
        generator: draws which begin mirrored; the device is its own.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.mirrored = torch.rand(count, generator=generator, device=generator.device) < 0.5  # at the next visit

    def __call__(self, images: Tensor, rows: Tensor, share: slice = WHOLE) -> Tensor:
        """`images` (B, C, H, W), the `share` of the batch of `rows`, as they are seen at this visit."""
        mirrored = self.mirrored.index_select(0, rows)
        self.mirrored[rows] = ~mirrored
        return torch.where(mirrored[share, None, None, None], images.flip(-1), images)


def random_affine(images: Tensor, degrees: float, pixels: float, draws: Draws) -> Tensor:
    """Rotates by up to `degrees` and shifts by up to `pixels` each way (bilinear; zeros come in from outside)."""
    turn, right, down_by = draws.uniform(3, -1, 1)
    angle = turn * math.radians(degrees)
    height, width = images.shape[-2:]
    cosine, sine = angle.cos(), angle.sin()
    # the aspect keeps a rotation of a rectangle rigid
    across = torch.stack([cosine, sine * (width / height)], dim=-1)
    down = torch.stack([-sine * (height / width), cosine], dim=-1)
    shift = torch.stack([right * (2 * pixels / width), down_by * (2 * pixels / height)], dim=-1)
    return affine(images, across, down, shift)


def affine(images: Tensor, across: Tensor, down: Tensor, shift: Tensor) -> Tensor:
    """Each image's own affine map: float32, bilinear, with zeros from outside.

    Coordinates are grid_sample's, (x, y) from -1 to 1 between the borders.

    Args:
        across: (B, 2), how far the place that a pixel is taken from moves along with the pixel's x.
        down: (B, 2), the same of its y.
        shift: (B, 2), where the centre is taken from.
    """
    x, y = axes(images)
    # as F.affine_grid has it, whose matrix product takes longer than all else here
    along = (down[:, None] * y[:, None] + shift[:, None])[:, :, None]
    grid = along + (across[:, None] * x[:, None])[:, None]
    return F.grid_sample(images.float(), grid, align_corners=False)


def axes(images: Tensor) -> tuple[Tensor, Tensor]:
    """x of each column (W,) and y of each row (H,) in grid_sample's coordinates."""
    height, width = images.shape[-2:]
    x, y = (torch.arange(1 - side, side, 2, device=images.device) / side for side in (width, height))
    return x, y


def random_cutout(images: Tensor, side: int, draws: Draws, fill: Tensor) -> Tensor:
    """Paints a square over each image, centred at a random pixel (DeVries and Taylor, arXiv 1708.04552)."""
    height, width = images.shape[-2:]
    centre = draws.uniform(2, 0, 1)
    masks = []
    for place, length in zip(centre, (height, width), strict=True):
        start = (place * length).long() - side // 2
        position = torch.arange(length, device=images.device)
        masks.append((position >= start[:, None]) & (position < start[:, None] + side))
    inside = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return torch.where(inside, fill.to(images.dtype)[:, None, None], images)


class Standardize(nn.Module):
    """Pixels (B, C, H, W), 0 to 255, to float32 with this mean and deviation of each channel taken out of them.

    Args:
        mean, deviation: of each channel, for pixels from 0 to 1.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        deviation = torch.where(deviation > 0, deviation, 1.0)  # a channel that never varies carries nothing
        # (pixel / 255 - mean) / deviation as one multiplication and addition
        self.register_buffer("scale", (1 / (255 * deviation)).view(-1, 1, 1))
        self.register_buffer("offset", (-mean / deviation).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images.float(), self.scale)


class NormalizeMoments(nn.Module):
    """`normalize_moments` as a layer."""

    def forward(self, images: Tensor) -> Tensor:
        return normalize_moments(images)


def make_normalization(kind: str, mean: list[float], deviation: list[float]) -> nn.Module:
    """What a network sees of pixels from 0 to 255, as a layer: (B, C, H, W) to float32 (B, C, H, W).

    Args:
        kind: `standardize` (mean 0, deviation 1 per channel), `unit` (0 to 1), or `moments` (standardize, after
            each image's place, slant and size are made alike).
        mean, deviation: of each channel of the training images, for pixels from 0 to 1.
    """
    if kind == "unit":
        return Standardize(torch.zeros(len(mean)), torch.ones(len(mean)))
    standardize = Standardize(torch.tensor(mean), torch.tensor(deviation))
    return nn.Sequential(NormalizeMoments(), standardize) if kind == "moments" else standardize


# of moment normalization
DEVIATION = (0.25, 0.36)  # of the ink along x and y, where half a side is 1
SCALE = (0.7, 1.4)  # the part of a side, least and most, that is shown as a whole one: strokes grow by 1 / 0.7 at most


def normalize_moments(images: Tensor) -> Tensor:
    """Moves, shears along x and scales each image so that its moments are the same: bright strokes on a dark ground.

    The centre of the ink comes to the image's, its covariance of x and y to 0 (the slant goes), and its deviations to
    `DEVIATION`, as far as `SCALE` lets them. Source: moment normalization, Casey 1970 (IBM J. Res. Dev. 14); the
    slant alone: "deslanting" in LeCun et al. 1998, section III.A.

    Args:
        images: (B, C, H, W), pixels of 0 or more.

    Returns:
        float32 (B, C, H, W); an image without ink stays so.
    """
    ink = images.sum(1, dtype=torch.float32)
    x, y = axes(images)
    rows, columns, along = ink.sum(2), ink.sum(1), (ink * x).sum(2)  # along: of each row, ink times x
    mass = rows.sum(1).clamp(min=1e-6)
    mean_x, mean_y = along.sum(1) / mass, (rows * y).sum(1) / mass
    from_x, from_y = x - mean_x[:, None], y - mean_y[:, None]
    variance_x = (columns * from_x**2).sum(1) / mass
    variance_y = (rows * from_y**2).sum(1) / mass
    covariance = (along * from_y).sum(1) / mass
    slant = covariance / variance_y.clamp(min=1e-4)
    upright = (variance_x - slant * covariance).clamp(min=0)  # variance of x once the slant is gone
    scale_x = (upright.sqrt() / DEVIATION[0]).clamp(*SCALE)
    scale_y = (variance_y.sqrt() / DEVIATION[1]).clamp(*SCALE)
    across = torch.stack([scale_x, torch.zeros_like(scale_x)], dim=-1)
    down = torch.stack([slant * scale_y, scale_y], dim=-1)
    return affine(images, across, down, torch.stack([mean_x, mean_y], dim=-1))


def classify_views(classify: Callable[[Tensor], Tensor], images: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Test-time augmentation: logits (B, classes) of `images` (B, C, H, W), and their mean over several views.

    Args:
        kind: `mirror`: the images and their mirror images. `translate`: these, for half of the mean, and for the other
            half the same of the images moved by a pixel, up and left or down and right, their border reflected
            (Jordan, arXiv 2404.00498, section 3.5: six views).
    """
    views = [images]
    if kind == "translate":
        height, width = images.shape[-2:]
        rows, columns = (reflected(1, side, images.device) for side in (height, width))
        padded = images.index_select(2, rows).index_select(3, columns)
        views += [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    plain, *others = (classify(image).float() for view in views for image in (view, view.flip(-1)))
    share = 1 / 2 if kind == "mirror" else 1 / 4  # of the first two views
    mean = share * plain + share * others[0]
    for logits in others[1:]:
        mean += share / 2 * logits
    return plain, mean
