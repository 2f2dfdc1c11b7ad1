"""MobileNetV3-Small: inverted residuals, some with squeeze-excite, found by search.

Source: Howard et al., arXiv 1905.02244, table 2; without the squeeze-excite that the table marks on the last
convolution, as in torchvision.
"""

from functools import partial

from torch import nn

from sepconv.networks.blocks import ConvNormActivation, inverted_residual, pointwise, sequential
from sepconv.networks.cpu import GlobalAvgPool
from sepconv.networks.options import Shape, find_column, find_kind, make_resize, make_scale

RE, HS = nn.ReLU, nn.Hardswish
STEM = (16, (2, 1))  # out_channels, stride (imagenet, small)
# kernel size, expanded channels, out_channels, squeeze-excite, activation, stride (imagenet, small)
TABLE = (
    (3, 16, 16, True, RE, (2, 1)),
    (3, 72, 24, False, RE, (2, 2)),
    (3, 88, 24, False, RE, (1, 1)),
    (5, 96, 40, True, HS, (2, 2)),
    (5, 240, 40, True, HS, (1, 1)),
    (5, 240, 40, True, HS, (1, 1)),
    (5, 120, 48, True, HS, (1, 1)),
    (5, 144, 48, True, HS, (1, 1)),
    (5, 288, 96, True, HS, (2, 2)),
    (5, 576, 96, True, HS, (1, 1)),
    (5, 576, 96, True, HS, (1, 1)),
)
LAST = 6  # channels of the last convolution, over those of the last block
HIDDEN = 1024  # of the dense layer before the classifier
# (imagenet, small): the paper's batch norms forget 1 % a step (section 6.1), over hundreds of epochs of thousands
# of steps; on small images a training may be over after some hundred
NORM = (partial(nn.BatchNorm2d, eps=0.001, momentum=0.01), nn.BatchNorm2d)


def mobilenet_v3_small(
    shape: Shape, classes: int, *, width: float, resolution: float, conv: str, form: str
) -> nn.Sequential:
    """The network of TABLE: 2,542,856 parameters in its ImageNet form, 3 channels and 1,000 classes."""
    scale, kind, column = make_scale(width), find_kind(conv), find_column(form)
    norm = NORM[column]
    out_channels, strides = STEM
    channels = scale(out_channels)
    stem = ConvNormActivation(shape[0], channels, stride=strides[column], norm_layer=norm, activation_layer=HS)
    blocks = nn.Sequential()
    for kernel_size, expanded, out_channels, squeeze, activation, strides in TABLE:
        block = partial(
            inverted_residual, squeeze=squeeze, norm_layer=norm, activation_layer=activation, step=kind.step
        )
        blocks.append(block(channels, scale(out_channels), scale(expanded), kernel_size, strides[column]))
        channels = scale(out_channels)
    return sequential(
        resize=make_resize(shape, resolution),
        stem=stem,
        blocks=blocks,
        last=pointwise(channels, LAST * channels, norm_layer=norm, activation_layer=HS),
        pool=GlobalAvgPool(),
        flatten=nn.Flatten(),
        hidden=nn.Linear(LAST * channels, scale(HIDDEN)),
        activation=HS(inplace=True),
        classifier=nn.Linear(scale(HIDDEN), classes),
    )
