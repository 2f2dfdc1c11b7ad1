"""`baseline` with its second convolution depthwise separable, nothing between its two steps.

The smallest controlled comparison: one layer differs from the baseline's.
"""

from functools import partial

from torch import nn

from sepconv.config import MOST
from sepconv.config.rules import check
from sepconv.networks.baseline import keras_example
from sepconv.networks.options import Shape, find_kind


def baseline_separable(
    shape: Shape, classes: int, *, conv: str, hidden: int, trim: bool, depth_multiplier: int
) -> nn.Sequential:
    """105,834 parameters at 28 x 28 x 1, 10 classes. Arguments and errors as the baseline's.

    Args:
        depth_multiplier: filters of the depthwise step on each channel, as of Keras's SeparableConv2D.
    """
    check(1 <= depth_multiplier <= MOST, "model.depth_multiplier", depth_multiplier, f"1 to {MOST}")
    second = find_kind(conv).bare
    if depth_multiplier != 1:
        check(conv == "separable", "model.depth_multiplier", depth_multiplier, f"1 where model.conv={conv}")
        second = partial(second, depth_multiplier=depth_multiplier)
    return keras_example(shape, classes, second, hidden, trim)
