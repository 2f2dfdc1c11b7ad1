"""Batched augmentation: each sample draws its own parameters, on the batch's device, without a loop.

torchvision's v2 transforms draw one set of parameters per call, for the whole batch; here a call takes a batch
and draws one set per sample. No function synchronises with the host or makes a shape that depends on data.
Images are (B, C, H, W); pixel values are kept in their range, 0 to 255.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sepconv.config import Augment


def augment(images: Tensor, settings: Augment, generator: torch.Generator, fill: Tensor) -> Tensor:
    """Applies what `settings` asks for, in this order: crop, flip, shift and rotation, cutout.

    Args:
        images: uint8 (B, C, H, W).
        fill: (C,), the colour of a cut-out square, 0 to 255.

    Returns:
        (B, C, H, W), uint8 where nothing interpolates, else float32.
    """
    if settings.crop:
        images = random_crop(images, settings.crop, generator, settings.reflect)
    if settings.flip and not settings.alternate:
        images = random_flip(images, generator)
    if settings.shift or settings.rotate:
        images = random_affine(images, settings.rotate, settings.shift, generator)
    if settings.cutout:
        images = random_cutout(images, settings.cutout, generator, fill)
    return images


def uniform(count: int, low: float, high: float, images: Tensor, generator: torch.Generator) -> Tensor:
    """`count` draws for each image of the batch: (count, B), uniform from `low` to `high`."""
    draws = torch.rand(count, len(images), generator=generator, device=images.device)
    return draws * (high - low) + low


def random_crop(images: Tensor, padding: int, generator: torch.Generator, reflect: bool = False) -> Tensor:
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
    corner = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=images.device)
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


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = uniform(1, 0, 1, images, generator)[0] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


class AlternatingFlip:
    """Mirrors each image at every other visit, beginning with its first or its second at random.

    Any two visits in a row see both sides of an image, where random flips show the same side twice half of the time.
    Source: Jordan, arXiv 2404.00498, section 3.6.

    Args:
        count: images of the data set.
        generator: draws which begin mirrored; the device is its own.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.mirrored = torch.rand(count, generator=generator, device=generator.device) < 0.5  # at the next visit

    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """`images` (B, C, H, W), which have `rows` (B,) in the data set, as they are seen at this visit."""
        mirrored = self.mirrored.index_select(0, rows)
        self.mirrored[rows] = ~mirrored
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def random_affine(images: Tensor, degrees: float, pixels: float, generator: torch.Generator) -> Tensor:
    """Rotates by up to `degrees` and shifts by up to `pixels` each way (bilinear; zeros come in from outside)."""
    draws = uniform(3, -1, 1, images, generator)
    angle = draws[0] * math.radians(degrees)
    height, width = images.shape[-2:]
    cosine, sine = angle.cos(), angle.sin()
    # In grid_sample's coordinates a side is 2 long; the aspect keeps a rotation of a rectangle rigid.
    x, y = (torch.arange(1 - side, side, 2, device=images.device) / side for side in (width, height))
    across = torch.stack([cosine, sine * (width / height)], dim=-1)
    down = torch.stack([-sine * (height / width), cosine], dim=-1)
    shift = torch.stack([draws[1] * (2 * pixels / width), draws[2] * (2 * pixels / height)], dim=-1)
    # as F.affine_grid has it, whose matrix product takes longer than all else here
    along = (down[:, None] * y[:, None] + shift[:, None])[:, :, None]
    grid = along + (across[:, None] * x[:, None])[:, None]
    return F.grid_sample(images.float(), grid, align_corners=False)


def random_cutout(images: Tensor, side: int, generator: torch.Generator, fill: Tensor) -> Tensor:
    """Paints a square over each image, centred at a random pixel (DeVries and Taylor, arXiv 1708.04552)."""
    height, width = images.shape[-2:]
    centre = uniform(2, 0, 1, images, generator)
    masks = []
    for draws, length in zip(centre, (height, width), strict=True):
        start = (draws * length).long() - side // 2
        position = torch.arange(length, device=images.device)
        masks.append((position >= start[:, None]) & (position < start[:, None] + side))
    inside = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return torch.where(inside, fill.to(images.dtype)[:, None, None], images)


def views(images: Tensor, kind: str) -> list[tuple[Tensor, float]]:
    """What test-time augmentation shows of `images` (B, C, H, W), and the share of each view in the mean of logits.

    Args:
        kind: `mirror`: the images and their mirror images. `translate`: these, for half of the mean, and for the other
            half the same of the images moved by a pixel, up and left or down and right, their border reflected
            (Jordan, arXiv 2404.00498, section 3.5: six views).
    """
    shown = [(images, 1.0)]
    if kind == "translate":
        height, width = images.shape[-2:]
        rows, columns = (reflected(1, side, images.device) for side in (height, width))
        padded = images.index_select(2, rows).index_select(3, columns)
        shown = [(images, 0.5), (padded[:, :, :height, :width], 0.25), (padded[:, :, 2:, 2:], 0.25)]
    return [(view, share / 2) for image, share in shown for view in (image, image.flip(-1))]
