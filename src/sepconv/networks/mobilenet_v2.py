"""MobileNetV2: inverted residuals with linear bottlenecks.

Source: Sandler et al., arXiv 1801.04381, table 2.
"""

from torch import nn

from sepconv.networks.blocks import ConvNormActivation, inverted_residual, pointwise, sequential
from sepconv.networks.options import Shape, find_column, find_kind, head, make_resize, make_scale

STEM = (32, (2, 1))  # out_channels, stride (imagenet, small)
# expansion, out_channels, number of blocks, stride (imagenet, small) of the first
TABLE = (
    (1, 16, 1, (1, 1)),
    (6, 24, 2, (2, 1)),
    (6, 32, 3, (2, 2)),
    (6, 64, 4, (2, 2)),
    (6, 96, 3, (1, 1)),
    (6, 160, 3, (2, 2)),
    (6, 320, 1, (1, 1)),
)
LAST = 1280  # channels of the pointwise convolution before the pooling; a width below 1 leaves them, as in the paper


def mobilenet_v2(shape: Shape, classes: int, *, width: float, resolution: float, conv: str, form: str) -> nn.Sequential:
    """The network of TABLE: 3,504,872 parameters in its ImageNet form, 3 channels and 1,000 classes."""
    scale, kind, column = make_scale(width), find_kind(conv), find_column(form)
    out_channels, strides = STEM
    channels = scale(out_channels)
    stem = ConvNormActivation(shape[0], channels, stride=strides[column], activation_layer=nn.ReLU6)
    blocks = nn.Sequential()
    for expansion, out_channels, count, strides in TABLE:
        for stride in [strides[column]] + [1] * (count - 1):
            expanded = expansion * channels
            blocks.append(inverted_residual(channels, scale(out_channels), expanded, stride=stride, step=kind.step))
            channels = scale(out_channels)
    last = make_scale(max(1.0, width))(LAST)
    return sequential(
        resize=make_resize(shape, resolution),
        stem=stem,
        blocks=blocks,
        last=pointwise(channels, last, activation_layer=nn.ReLU6),
        **head(last, classes),
    )
