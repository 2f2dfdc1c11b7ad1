"""ResNet, the dense reference: standard convolutions in residual blocks of two, for small images and for ImageNet.

Source: He et al., arXiv 1512.03385, section 4.2 (their networks for CIFAR-10) and table 1 (for ImageNet).
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepconv.config import check, check_choice
from sepconv.networks.blocks import ConvNormActivation, LayerFactory, Residual, pointwise, sequential
from sepconv.networks.options import FORMS, Shape, find_kind, head, make_scale

# out_channels of each stage, stride of its first block; the stem has the first stage's channels
SMALL = ((16, 1), (32, 2), (64, 2))
IMAGENET = ((64, 1), (128, 2), (256, 2), (512, 2))
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # in each stage of IMAGENET, by depth


# the shortcut where the shape changes: option B of the paper's section 3.3, a pointwise convolution and a norm
projection = partial(pointwise, activation_layer=None)


class Subsampling(nn.Module):
    """The same without parameters, option A: every stride-th position, and channels of zeros added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.added, self.stride = out_channels - in_channels, stride

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(Subsample.apply(input, self.stride), (0, 0, 0, 0, 0, self.added))


class Subsample(torch.autograd.Function):
    """Every stride-th position. torch's own gradient of it would lie in memory otherwise than the input."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, stride: int) -> Tensor:
        ctx.stride, ctx.like = stride, torch.empty_like(input, device="meta")
        return input[:, :, ::stride, ::stride].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        spread = torch.zeros_like(ctx.like, dtype=grad.dtype, device=grad.device)
        spread[:, :, :: ctx.stride, :: ctx.stride] = grad
        return spread, None


def resnet(shape: Shape, classes: int, *, depth: int, width: float, conv: str, form: str) -> nn.Sequential:
    """The network of SMALL, 269,722 parameters at depth 20, 3 channels and 10 classes; or the one of IMAGENET.

    Args:
        depth: layers with weights, shortcuts aside: 6n + 2 (20, 32, 44, 56, 110, ...); 18 or 34 in ImageNet's form.
        conv: the kind of each 3 x 3 convolution in the blocks, with nothing between its steps.
    """
    check_choice("model.form", form, *FORMS)
    scale, kind = make_scale(width), find_kind(conv)
    stem: nn.Sequential
    table: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    shortcut: LayerFactory
    if form == "imagenet":
        check(depth in BLOCKS, "model.depth", depth, "18 or 34 with model.form=imagenet")
        table, counts, shortcut = IMAGENET, BLOCKS[depth], projection
        channels = scale(table[0][0])
        stem = sequential(ConvNormActivation(shape[0], channels, 7, 2), pool=nn.MaxPool2d(3, 2, padding=1))
    else:
        valid = 8 <= depth <= 1202 and depth % 6 == 2
        check(valid, "model.depth", depth, "6n + 2, such as 20, 32, 44, 56 or 110, at most 1202")
        table, counts, shortcut = SMALL, (depth // 6,) * 3, Subsampling
        channels = scale(table[0][0])
        stem = ConvNormActivation(shape[0], channels)
    blocks = nn.Sequential()
    for (out_channels, first), count in zip(table, counts, strict=True):
        out_channels = scale(out_channels)
        for stride in [first] + [1] * (count - 1):
            block = sequential(
                conv1=kind.bare(channels, out_channels, stride=stride),
                conv2=kind.bare(out_channels, out_channels, activation_layer=None),
            )
            same = stride == 1 and channels == out_channels
            around = None if same else shortcut(channels, out_channels, stride)
            blocks.append(Residual(block, around, nn.ReLU(inplace=True)))
            channels = out_channels
    return sequential(stem=stem, blocks=blocks, **head(channels, classes))
