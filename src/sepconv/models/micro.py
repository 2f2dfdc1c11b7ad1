"""A network of some 700 parameters for handwritten digits: unpadded separable convolutions in a row.

Our own table. Two convolutions see the image at its own resolution; after one pooling the maps shrink, unpadded, from
12 to 4 positions a side, so that each of the last ones has seen most of the digit. The norms learn nothing: every
parameter is a filter's or the classifier's. Its shape follows the smallest network known to reach 99 % on MNIST
(github.com/JoshWarn/Parameter-Efficient-MNIST: 697 parameters, no padding, four separable convolutions), with one more
and norms instead of biases. Hardswish: Howard et al., arXiv 1905.02244.
"""

from functools import partial

from torch import nn

from sepconv.config import check
from sepconv.models.options import find_kind, make_classifier
from sepconv.ops import ConvNormActivation, pool_norm

# channels of the first 3 x 3 convolution, then of each block of 3 x 3; a 2 x 2 max pooling follows the first block
TABLE = (5, 5, 7, 8, 8, 8)
LEAST = 3  # positions a side that a block without padding leaves at least; below, blocks are padded


def micro(shape: tuple[int, int, int], classes: int, *, width: float = 1.0, conv: str = "separable") -> nn.Sequential:
    """A convolution, then five separable blocks, with a pooling after the first block.

    676 parameters at 28 x 28 x 1, 10 classes. Each step of a block has a norm, but those of the first block share one,
    after the pooling; each block has one Hardswish, at its end.

    Args:
        width: multiplies the table's channels (rounded).
        conv: the kind of each block's convolution: separable, dense or spatial.
    """
    check(0 < width <= 64, "model.width", width, "above 0, at most 64")
    kind = find_kind(conv)
    norm = partial(nn.BatchNorm2d, affine=False)
    pooled = partial(pool_norm, norm_layer=norm, ceil_mode=True)
    steps = [partial(ConvNormActivation, norm_layer=norm), partial(kind.bare, norm_layer=pooled)]
    steps += [partial(kind.block, norm_layer=norm)] * (len(TABLE) - len(steps))
    in_channels, *sides = shape
    layers: list[nn.Module] = []
    for row, (channels, step) in enumerate(zip(TABLE, steps, strict=True)):
        out_channels = max(1, round(channels * width))
        padding = 0 if min(sides) >= LEAST + 2 else 1
        layers += [step(in_channels, out_channels, padding=padding, activation_layer=None), nn.Hardswish(inplace=True)]
        in_channels, sides = out_channels, [side - 2 + 2 * padding for side in sides]
        if row == 1:
            sides = [(side + 1) // 2 for side in sides]
    pooling, *classifier = make_classifier(in_channels, classes)
    # means over a map hardly differ between images: without this norm the classifier's weights take long to grow
    return nn.Sequential(*layers, pooling, norm(in_channels), *classifier)
