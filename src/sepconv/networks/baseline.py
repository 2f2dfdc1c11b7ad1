"""A network after the Keras MNIST example, with a hidden dense layer and without dropout.

Source: keras.io/examples/vision/mnist_convnet, where a dropout of a half stands between the second pooling and the
classifier.
"""

from functools import partial

from torch import Tensor, nn

from sepconv import InputError
from sepconv.config import MOST
from sepconv.config.rules import check
from sepconv.networks.blocks import ConvNormActivation, LayerFactory, conv_pool_norm_activation, sequential
from sepconv.networks.cpu import Flatten
from sepconv.networks.options import Shape, find_kind

# channels of each 3 x 3 convolution (unpadded, with bias); a 2 x 2 max pooling and a ReLU follow each
TABLE = (32, 64)


def baseline(shape: Shape, classes: int, *, conv: str, hidden: int, trim: bool) -> nn.Sequential:
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


def keras_example(shape: Shape, classes: int, second: LayerFactory, hidden: int, trim: bool) -> nn.Sequential:
    """The network of TABLE with `second` for its second convolution, and `hidden` units between.

    The ReLU comes after the pooling, on a quarter of the positions: the largest of four values is what it was.
    """
    check(1 <= hidden <= MOST, "model.hidden", hidden, f"1 to {MOST}")
    block = partial(conv_pool_norm_activation, padding=0, norm_layer=None)
    sides = [((side - 2) // 2 - 2) // 2 for side in shape[1:]]
    if min(sides) < 1:
        raise InputError(f"images of {shape[1]} x {shape[2]} are too small for this network: 10 x 10 or more")
    return sequential(
        crop=Crop(*(2 * (2 * side + 2) + 2 for side in sides)) if trim else None,
        conv1=block(ConvNormActivation, shape[0], TABLE[0]),
        conv2=block(second, *TABLE),
        flatten=Flatten(),
        hidden=nn.Linear(TABLE[1] * sides[0] * sides[1], hidden),
        activation=nn.ReLU(inplace=True),
        classifier=nn.Linear(hidden, classes),
    )


class Crop(nn.Module):
    """The first rows and columns of images: (B, C, H, W) to (B, C, height, width)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        return images[..., : self.height, : self.width]

    def extra_repr(self) -> str:
        return f"{self.height}, {self.width}"
