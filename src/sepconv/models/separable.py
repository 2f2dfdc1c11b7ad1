"""A MobileNet for images of 28 to 32 pixels: a standard stem, then depthwise separable blocks.

After Howard et al., arXiv 1704.04861, table 1. Where MobileNetV1 halves a 224-pixel image five times, this network
halves a 28-pixel one twice, and ends at 7 x 7 (8 x 8 from 32) as MobileNetV1 does.
"""

from torch import nn

from sepconv.models.options import find_kind, make_classifier, make_resize, make_scale
from sepconv.ops import ConvNormActivation

STEM = (32, 2)  # out_channels, stride
# out_channels, stride of each block
TABLE = (
    (64, 1),
    (64, 2),
    (96, 1),
    (128, 1),
)


def separable(
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: float = 1.0,
    resolution: float = 1.0,
    conv: str = "separable",
) -> nn.Sequential:
    """The network of TABLE.

    Args:
        width: multiplies every layer's channels (to multiples of 8): MobileNet's alpha.
        resolution: multiplies the image's side: MobileNet's rho.
        conv: the kind of each block's convolution: separable, dense or spatial.
    """
    scale, kind = make_scale(width), find_kind(conv)
    out_channels, stride = STEM
    channels = scale(out_channels)
    layers = make_resize(shape, resolution)
    layers.append(ConvNormActivation(shape[0], channels, stride=stride))
    for out_channels, stride in TABLE:
        layers.append(kind.block(channels, scale(out_channels), stride=stride))
        channels = scale(out_channels)
    return nn.Sequential(*layers, *make_classifier(channels, classes))
