"""The Keras MNIST example, and its twin whose second convolution is separable.

Source: keras.io/examples/vision/mnist_convnet, in the form with one hidden dense layer.
"""

from torch import nn

from sepconv import InputError
from sepconv.models.options import find_kind
from sepconv.ops import ConvNormActivation

# channels of each 3 x 3 convolution (unpadded, with bias and ReLU); a 2 x 2 max pooling follows each
TABLE = (32, 64)
HIDDEN = 64


def baseline(shape: tuple[int, int, int], classes: int, *, conv: str = "dense") -> nn.Sequential:
    """Conv 32, pool, conv 64, pool, dense 64, dense `classes`: 121,930 parameters at 28 x 28 x 1, 10 classes.

    Args:
        conv: the kind of the second convolution: separable or spatial (nothing between its two steps), or dense.

    Raises:
        InputError: images too small for it.
    """
    channels, *sides = shape
    layers: list[nn.Module] = []
    for out_channels, convolution in zip(TABLE, (ConvNormActivation, find_kind(conv).bare), strict=True):
        layers += [convolution(channels, out_channels, 3, 1, 0, norm_layer=None), nn.MaxPool2d(2)]
        channels, sides = out_channels, [(side - 2) // 2 for side in sides]
    if min(sides) < 1:
        raise InputError(f"images of {shape[1]} x {shape[2]} are too small for this network: 10 x 10 or more")
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * sides[0] * sides[1], HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, classes),
    )


def baseline_separable(shape: tuple[int, int, int], classes: int, *, conv: str = "separable") -> nn.Sequential:
    """The baseline with its second convolution depthwise separable, nothing between its two steps.

    The smallest controlled comparison: one layer differs. 105,834 parameters at 28 x 28 x 1, 10 classes.
    """
    return baseline(shape, classes, conv=conv)
