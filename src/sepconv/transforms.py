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
        images = random_crop(images, settings.crop, generator)
    if settings.flip:
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


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pads with `padding` zero pixels and crops back at a random place (He et al. 2016, section 4.2)."""
    batch, channels, height, width = images.shape
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    corner = torch.randint(2 * padding + 1, (2, batch), generator=generator, device=images.device)
    rows = corner[0, :, None] + torch.arange(height, device=images.device)
    columns = corner[1, :, None] + torch.arange(width, device=images.device)
    # One row index per output pixel into the flattened pixels: a single gather, channels together.
    stride = width + 2 * padding
    first = torch.arange(batch, device=images.device) * (height + 2 * padding) * stride
    index = first[:, None, None] + rows[:, :, None] * stride + columns[:, None, :]
    pixels = padded.reshape(-1, channels).index_select(0, index.flatten())
    return pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = uniform(1, 0, 1, images, generator)[0] < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def random_affine(images: Tensor, degrees: float, pixels: float, generator: torch.Generator) -> Tensor:
    """Rotates by up to `degrees` and shifts by up to `pixels` each way (bilinear; zeros come in from outside)."""
    draws = uniform(3, -1, 1, images, generator)
    angle = draws[0] * math.radians(degrees)
    height, width = images.shape[-2:]
    cosine, sine = angle.cos(), angle.sin()
    # In affine_grid's coordinates a side is 2 long; the aspect keeps a rotation of a rectangle rigid.
    rows = [
        [cosine, -sine * (height / width), draws[1] * (2 * pixels / width)],
        [sine * (width / height), cosine, draws[2] * (2 * pixels / height)],
    ]
    theta = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
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
