"""A MobileNet for images of 28 to 32 pixels: a standard stem, then depthwise separable blocks.

After Howard et al., arXiv 1704.04861, table 1. Where MobileNetV1 halves a 224-pixel image five times, this network
halves a 28-pixel one twice, and ends at 7 x 7 (8 x 8 from 32) as MobileNetV1 does.
"""

from torch import nn
from torchvision.models._utils import _make_divisible

from sepconv.config import check
from sepconv.ops import ConvNormActivation, GlobalAvgPool, Resize, depthwise_separable

STEM = (32, 2)  # out_channels, stride
# out_channels, stride of each block
TABLE = (
    (64, 1),
    (64, 2),
    (96, 1),
    (128, 1),
)


def separable(
    shape: tuple[int, int, int], classes: int, *, width: float = 1.0, resolution: float = 1.0
) -> nn.Sequential:
    """The network of TABLE.

    Args:
        width: multiplies every layer's channels (to multiples of 8): MobileNet's alpha.
        resolution: multiplies the image's side: MobileNet's rho.
    """
    check(0 < width <= 64, "model.width", width, "above 0, at most 64")
    check(0 < resolution <= 8, "model.resolution", resolution, "above 0, at most 8")
    channels = _make_divisible(STEM[0] * width, 8)
    layers: list[nn.Module] = [Resize(max(1, round(shape[1] * resolution)))] if resolution != 1 else []
    layers.append(ConvNormActivation(shape[0], channels, stride=STEM[1]))
    for out_channels, stride in TABLE:
        out_channels = _make_divisible(out_channels * width, 8)
        layers.append(depthwise_separable(channels, out_channels, stride=stride))
        channels = out_channels
    return nn.Sequential(*layers, GlobalAvgPool(), nn.Flatten(), nn.Linear(channels, classes))
