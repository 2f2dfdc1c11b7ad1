"""The options that networks share, checked, and what they mean to a builder.

- `width` multiplies every layer's channels (to multiples of 8): MobileNet's alpha
- `resolution` multiplies the image's sides: MobileNet's rho
- `conv` is the kind of each block's convolution: separable, dense or spatial
- `form` says whose strides: imagenet (the paper's) or small (for images of 28 to 32 pixels)

A family's table gives two strides to each row, one per form: the paper's, for ImageNet's 224 pixels (Xception: 299),
and one for images of 28 to 32. At a 32-pixel image every stride of a paper would end at 1 x 1; with the first two
left out it ends at 4 x 4, as the paper's own form does from 128 pixels.
"""

from collections.abc import Callable

from torch import nn
from torchvision.models._utils import _make_divisible

from sepconv.config.rules import check, check_choice
from sepconv.networks.blocks import KINDS, Kind, Resize
from sepconv.networks.cpu import GlobalAvgPool

Shape = tuple[int, int, int]  # of an image: channels, height, width

FORMS = ("imagenet", "small")  # the columns of a table's strides


def find_column(form: str) -> int:
    """Where a table holds the strides of `form`."""
    check_choice("model.form", form, *FORMS)
    return FORMS.index(form)


def find_kind(conv: str) -> Kind:
    """The builders of the kind of convolution `conv`."""
    check_choice("model.conv", conv, *KINDS)
    return KINDS[conv]


def make_scale(width: float) -> Callable[[int], int]:
    """What multiplies a table's channels by `width`: to the nearest multiple of 8, 8 at least."""
    check(0 < width <= 64, "model.width", width, "above 0, at most 64")
    return lambda channels: _make_divisible(channels * width, 8)


def make_resize(shape: Shape, resolution: float) -> Resize | None:
    """What multiplies the sides of images of `shape` by `resolution`; None where it is 1."""
    check(0 < resolution <= 8, "model.resolution", resolution, "above 0, at most 8")
    return None if resolution == 1 else Resize(*(max(1, round(side * resolution)) for side in shape[1:]))


def head(channels: int, classes: int) -> dict[str, nn.Module]:
    """The last parts of a network, by name: from feature maps (B, channels, H, W) to logits (B, classes)."""
    return {"pool": GlobalAvgPool(), "flatten": nn.Flatten(), "classifier": nn.Linear(channels, classes)}
