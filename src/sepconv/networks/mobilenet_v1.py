"""MobileNetV1: a standard stem, then depthwise separable blocks.

Source: Howard et al., arXiv 1704.04861, table 1 (whose last stride, 2 at a 7 x 7 map that stays 7 x 7, is 1 in the
authors' code); ReLU6, as in that code. `conv=dense` is the "Conv MobileNet" of table 4.
"""

from torch import nn

from sepconv.networks.blocks import ConvNormActivation, sequential
from sepconv.networks.options import Shape, find_column, find_kind, head, make_resize, make_scale

STEM = (32, (2, 1))  # out_channels, stride (imagenet, small)
# out_channels, stride (imagenet, small) of the first, number of blocks
TABLE = (
    (64, (1, 1), 1),
    (128, (2, 1), 1),
    (128, (1, 1), 1),
    (256, (2, 2), 1),
    (256, (1, 1), 1),
    (512, (2, 2), 1),
    (512, (1, 1), 5),
    (1024, (2, 2), 1),
    (1024, (1, 1), 1),
)


def mobilenet_v1(shape: Shape, classes: int, *, width: float, resolution: float, conv: str, form: str) -> nn.Sequential:
    """The network of TABLE: 4,231,976 parameters in its ImageNet form, 3 channels and 1,000 classes."""
    scale, kind, column = make_scale(width), find_kind(conv), find_column(form)
    out_channels, strides = STEM
    channels = scale(out_channels)
    stem = ConvNormActivation(shape[0], channels, stride=strides[column], activation_layer=nn.ReLU6)
    blocks = nn.Sequential()
    for out_channels, strides, count in TABLE:
        for stride in [strides[column]] + [1] * (count - 1):
            blocks.append(kind.block(channels, scale(out_channels), stride=stride, activation_layer=nn.ReLU6))
            channels = scale(out_channels)
    return sequential(resize=make_resize(shape, resolution), stem=stem, blocks=blocks, **head(channels, classes))
