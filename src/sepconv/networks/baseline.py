"""The Keras MNIST example, and its twin whose second convolution is separable.

Source: keras.io/examples/vision/mnist_convnet, in the form with one hidden dense layer.
"""

from functools import partial

from torch import nn

from sepconv import InputError
from sepconv.config import MOST, check
from sepconv.networks.blocks import ConvNormActivation, Crop, Flatten, HalvingMaxPool, Layer
from sepconv.networks.options import find_kind

# channels of each 3 x 3 convolution (unpadded, with bias); a 2 x 2 max pooling and a ReLU follow each
TABLE = (32, 64)


def baseline(
    shape: tuple[int, int, int], classes: int, *, conv: str = "dense", hidden: int = 64, trim: bool = False
) -> nn.Sequential:
    """Conv 32, pool, conv 64, pool, dense 64, dense `classes`: 121,930 parameters at 28 x 28 x 1, 10 classes.

    Args:
        conv: the kind of the second convolution: separable or spatial (nothing between its two steps), or dense.
        hidden: units of the dense layer between.
        trim: leave out the last rows and columns of the images (at 28 x 28 two of each), of which nothing gets past the
            poolings of odd maps: the same function, with a sixth less arithmetic.

    Raises:
        InputError: images too small for it.
    """
    return keras_example(shape, classes, find_kind(conv).bare, hidden, trim)


def baseline_separable(
    shape: tuple[int, int, int],
    classes: int,
    *,
    conv: str = "separable",
    hidden: int = 64,
    trim: bool = False,
    depth_multiplier: int = 1,
) -> nn.Sequential:
    """The baseline with its second convolution depthwise separable, nothing between its two steps.

    The smallest controlled comparison: one layer differs. 105,834 parameters at 28 x 28 x 1, 10 classes.

    Args:
        depth_multiplier: filters of the depthwise step on each channel, as of Keras's SeparableConv2D.
    """
    second = find_kind(conv).bare
    if depth_multiplier != 1:
        check(conv == "separable", "model.depth_multiplier", depth_multiplier, f"1 where model.conv={conv}")
        second = partial(second, depth_multiplier=depth_multiplier)
    return keras_example(shape, classes, second, hidden, trim)


def keras_example(shape: tuple[int, int, int], classes: int, second: Layer, hidden: int, trim: bool) -> nn.Sequential:
    """The network of TABLE with `second` for its second convolution, and `hidden` units between.

    The ReLU comes after the pooling, on a quarter of the positions: the largest of four values is what it was.
    """
    check(1 <= hidden <= MOST, "model.hidden", hidden, f"1 to {MOST}")
    channels, *sides = shape
    layers: list[nn.Module] = []
    for out_channels, convolution in zip(TABLE, (ConvNormActivation, second), strict=True):
        layers.append(convolution(channels, out_channels, 3, 1, 0, norm_layer=None, activation_layer=None))
        layers += [HalvingMaxPool(), nn.ReLU(inplace=True)]
        channels, sides = out_channels, [(side - 2) // 2 for side in sides]
    if min(sides) < 1:
        raise InputError(f"images of {shape[1]} x {shape[2]} are too small for this network: 10 x 10 or more")
    if trim:
        used = sides
        for _ in TABLE:
            used = [2 * side + 2 for side in used]
        layers.insert(0, Crop(*used))
    return nn.Sequential(
        *layers,
        Flatten(),
        nn.Linear(channels * sides[0] * sides[1], hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )
