"""ResNet, the dense reference: standard convolutions in residual blocks of two, for small images and for ImageNet.

Source: He et al., arXiv 1512.03385, section 4.2 (their networks for CIFAR-10) and table 1 (for ImageNet). The form
mlperf_tiny is the image classification reference of MLPerf Tiny (Banbury et al., arXiv 2106.07597), as
`resnet_v1_eembc` in benchmark/training/image_classification/keras_model.py of github.com/mlcommons/tiny makes it with
16 filters. It differs where layers are torch's: a strided convolution is padded on all sides, in Keras below and to the
right alone, and norms have torch's defaults.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepconv.config.rules import check, check_choice
from sepconv.networks.blocks import ConvNormActivation, LayerFactory, Residual, pointwise, sequential
from sepconv.networks.options import Shape, find_kind, head, make_scale

# the shortcut where the shape changes: option B of He et al., section 3.3, a pointwise convolution and a norm
projection = partial(pointwise, activation_layer=None)
# that convolution alone, with a bias
unnormed = partial(projection, norm_layer=None)


class Subsampling(nn.Module):
    """The shortcut without parameters, option A: every stride-th position, and channels of zeros added."""

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


def pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    """ImageNet's stem: (B, in_channels, H, W) to (B, out_channels, H / 4, W / 4)."""
    return sequential(ConvNormActivation(in_channels, out_channels, 7, 2), pool=nn.MaxPool2d(3, 2, padding=1))


class Form(NamedTuple):
    """Networks that differ in depth alone."""

    stages: tuple[tuple[int, int], ...]  # out_channels of each, stride of its first block; the stem has the first one's
    blocks: dict[int, tuple[int, ...]]  # in each stage, by depth
    depths: str  # what those are, for an error's line
    stem: LayerFactory
    shortcut: LayerFactory  # where the shape changes
    bias: bool | None = None  # of the blocks' convolutions, as ConvNormActivation's


SMALL = ((16, 1), (32, 2), (64, 2))
IMAGENET = ((64, 1), (128, 2), (256, 2), (512, 2))
FORMS = {
    "imagenet": Form(
        IMAGENET, {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}, "18 or 34 with model.form=imagenet", pooled, projection
    ),
    "small": Form(
        SMALL, {6 * count + 2: (count,) * 3 for count in range(1, 201)},
        "6n + 2, such as 20, 32, 44, 56 or 110, at most 1202", ConvNormActivation, Subsampling,
    ),
    "mlperf_tiny": Form(
        SMALL, {8: (1, 1, 1)}, "8 with model.form=mlperf_tiny", partial(ConvNormActivation, bias=True), unnormed,
        bias=True,
    ),
}  # fmt: skip


def resnet(shape: Shape, classes: int, *, depth: int, width: float, conv: str, form: str) -> nn.Sequential:
    """The network of FORMS: at 3 channels and 10 classes 269,722 parameters as small, depth 20, 78,186 as mlperf_tiny.

    Args:
        depth: layers with weights, shortcuts aside: 6n + 2 (20, 32, 44, 56, 110, ...); 18 or 34 in ImageNet's form, 8
            in MLPerf Tiny's.
        conv: the kind of each 3 x 3 convolution in the blocks, with nothing between its steps.
    """
    check_choice("model.form", form, *FORMS)
    scale, kind, own = make_scale(width), find_kind(conv), FORMS[form]
    check(depth in own.blocks, "model.depth", depth, own.depths)
    channels = scale(own.stages[0][0])
    stem, blocks = own.stem(shape[0], channels), nn.Sequential()
    for (out_channels, first), count in zip(own.stages, own.blocks[depth], strict=True):
        out_channels = scale(out_channels)
        for stride in [first] + [1] * (count - 1):
            block = sequential(
                conv1=kind.bare(channels, out_channels, stride=stride, bias=own.bias),
                conv2=kind.bare(out_channels, out_channels, activation_layer=None, bias=own.bias),
            )
            same = stride == 1 and channels == out_channels
            around = None if same else own.shortcut(channels, out_channels, stride)
            blocks.append(Residual(block, around, nn.ReLU(inplace=True)))
            channels = out_channels
    return sequential(stem=stem, blocks=blocks, **head(channels, classes))
