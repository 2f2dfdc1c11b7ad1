"""A MobileNet for images of 28 to 32 pixels: a standard stem, then depthwise separable blocks.

After Howard et al., arXiv 1704.04861, table 1. Where MobileNetV1 halves a 224-pixel image five times, this network
halves a 28-pixel one twice, and ends at 7 x 7 (8 x 8 from 32) as MobileNetV1 does.
"""

from torch import nn

from sepconv.config.rules import check, check_choice
from sepconv.networks.blocks import ConvNormActivation, LayerFactory, Residual, depthwise_separable, sequential
from sepconv.networks.options import Shape, find_kind, head, make_resize, make_scale

STEM = (32, 2)  # out_channels, stride
STEMS: dict[str, LayerFactory] = {"standard": ConvNormActivation, "separable": depthwise_separable}
# out_channels, stride of each block
TABLE = ((64, 1), (64, 2), (96, 1), (128, 1))


def separable(
    shape: Shape, classes: int, *, width: float, resolution: float, depth: int, residual: bool, stem: str, conv: str
) -> nn.Sequential:
    """The network of TABLE.

    Args:
        depth: how often each block of the table stands there, from the second time on at stride 1.
        residual: add the input to the output of each block that keeps its shape.
        stem: the kind of the first layer: standard or separable.
    """
    check(1 <= depth <= 64, "model.depth", depth, "1 to 64")
    check_choice("model.stem", stem, *STEMS)
    scale, kind = make_scale(width), find_kind(conv)
    out_channels, stride = STEM
    channels = scale(out_channels)
    first_layer = STEMS[stem](shape[0], channels, stride=stride)
    blocks = nn.Sequential()
    for out_channels, first in TABLE:
        for stride in [first] + [1] * (depth - 1):
            block = kind.block(channels, scale(out_channels), stride=stride)
            same = stride == 1 and channels == scale(out_channels)
            blocks.append(Residual(block) if residual and same else block)
            channels = scale(out_channels)
    return sequential(resize=make_resize(shape, resolution), stem=first_layer, blocks=blocks, **head(channels, classes))
