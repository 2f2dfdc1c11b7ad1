"""A separable network of 678 parameters for MNIST.

Our own table, in the manner of MobileNet (Howard et al., arXiv 1704.04861, figure 3) with the identity added around
blocks that keep their channels (Sandler et al., arXiv 1801.04381) and Hardswish (Howard et al., arXiv 1905.02244).
"""

from torch import nn

from sepconv.models.options import find_kind, make_classifier
from sepconv.ops import ConvNormActivation, Residual

STEM = 5  # out_channels
# out_channels of each block, whether a max pooling halves the map after it
TABLE = (
    (7, True),
    (7, False),
    (7, True),
    (8, False),
)


def tiny(shape: tuple[int, int, int], classes: int, *, conv: str = "separable") -> nn.Sequential:
    """The network of TABLE: 678 parameters at 28 x 28 x 1, 10 classes.

    Args:
        conv: the kind of each block's convolution: separable, dense or spatial.
    """
    kind = find_kind(conv)
    channels = STEM
    layers: list[nn.Module] = [ConvNormActivation(shape[0], channels, activation_layer=nn.Hardswish)]
    for out_channels, pooled in TABLE:
        block = kind.block(channels, out_channels, activation_layer=nn.Hardswish)
        layers.append(Residual(block) if channels == out_channels else block)
        if pooled:
            layers.append(nn.MaxPool2d(3, 2, padding=1))
        channels = out_channels
    pooling, *classifier = make_classifier(channels, classes)
    # means over a map hardly differ between images: without this norm the classifier's weights take long to grow
    return nn.Sequential(*layers, pooling, nn.BatchNorm2d(channels, affine=False), *classifier)
