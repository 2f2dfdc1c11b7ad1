"""The Keras MNIST example, and its twin whose second convolution is separable.

Source: keras.io/examples/vision/mnist_convnet, in the form with one hidden dense layer.
"""

from torch import nn

from sepconv import InputError
from sepconv.config import check
from sepconv.models.options import find_kind
from sepconv.ops import ConvNormActivation

# channels of each 3 x 3 convolution (unpadded, with bias); a 2 x 2 max pooling and a ReLU follow each
TABLE = (32, 64)


def baseline(shape: tuple[int, int, int], classes: int, *, conv: str = "dense", hidden: int = 64) -> nn.Sequential:
    """Conv 32, pool, conv 64, pool, dense 64, dense `classes`: 121,930 parameters at 28 x 28 x 1, 10 classes.

    The ReLU comes after the pooling, on a quarter of the positions: the largest of four values is what it was.

    Args:
        conv: the kind of the second convolution: separable or spatial (nothing between its two steps), or dense.
        hidden: units of the dense layer between.

    Raises:
        InputError: images too small for it.
    """
    channels, *sides = shape
    layers: list[nn.Module] = []
    check(hidden >= 1, "model.hidden", hidden, "1 or more")
    for out_channels, convolution in zip(TABLE, (ConvNormActivation, find_kind(conv).bare), strict=True):
        layers.append(convolution(channels, out_channels, 3, 1, 0, norm_layer=None, activation_layer=None))
        layers += [nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        channels, sides = out_channels, [(side - 2) // 2 for side in sides]
    if min(sides) < 1:
        raise InputError(f"images of {shape[1]} x {shape[2]} are too small for this network: 10 x 10 or more")
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(channels * sides[0] * sides[1], hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, classes),
    )


def baseline_separable(
    shape: tuple[int, int, int], classes: int, *, conv: str = "separable", hidden: int = 64
) -> nn.Sequential:
    """The baseline with its second convolution depthwise separable, nothing between its two steps.

    The smallest controlled comparison: one layer differs. 105,834 parameters at 28 x 28 x 1, 10 classes.
    """
    return baseline(shape, classes, conv=conv, hidden=hidden)
