"""The network of the speed records on CIFAR-10, with dense convolutions as there, and with separable ones.

Source: Jordan, arXiv 2404.00498, section 3.1, with the widths of KellerJordan/cifar10-airbench's airbench94_muon, and
those, the third convolution and the residual connection of its airbench96_faster. Its norms add 1e-12 to the variance,
those here torch's 1e-5; those of airbench96_faster have torch's momentum of 0.1, those here 0.4 in both forms.
"""

import math
from functools import partial

from torch import nn

from sepconv import InputError
from sepconv.config.rules import check, check_choice
from sepconv.networks.blocks import ConvNormActivation, Residual, conv_pool_norm_activation, sequential
from sepconv.networks.options import Shape, find_kind, make_scale

# kernel size, unpadded; twice as many filters as a patch has pixels: its whitening directions, with both signs
STEM = 2
# of each form: out_channels of its groups, convolutions in each; the first one's output is halved by a max pooling
TABLE = {"94": ((64, 256, 256), 2), "96": ((128, 384, 512), 3)}


def gelu(inplace: bool) -> nn.Module:
    """GELU, which has no form in place."""
    return nn.GELU()


def norm(channels: int, scales: bool) -> nn.BatchNorm2d:
    """A batch norm for a training of few steps: its averages are of the last of them."""
    layer = nn.BatchNorm2d(channels, momentum=0.4)
    layer.weight.requires_grad_(scales)
    return layer


def airbench(
    shape: Shape, classes: int, *, form: str, width: float, conv: str, scales: bool, widen: bool
) -> nn.Sequential:
    """The network of TABLE, 1,972,792 parameters in form 94 at 3 channels and 10 classes, the norms' scales among them.

    Args:
        form: 94 or 96, the test accuracy in per cent that its record is for.
        width: multiplies the groups' channels alone.
        conv: the kind of each 3 x 3 convolution, with nothing between its steps.
        scales: whether norms learn a scale for each channel, beside a shift.
        widen: where channels grow, give the depthwise step several filters a channel: as many as make at least the maps
            that the block puts out, so that what its pointwise step mixes has as many dimensions.

    Raises:
        InputError: images too small for it; `widen` without depthwise steps.
    """
    check_choice("model.form", form, *TABLE)
    if min(shape[1:]) < STEM + 7:
        raise InputError(f"images of {shape[1]} x {shape[2]} are too small for this network: 9 x 9 or more")
    check(not widen or conv == "separable", "model.widen", widen, f"false where model.conv={conv}")
    scale, convolution = make_scale(width), find_kind(conv).bare
    norm_layer = partial(norm, scales=scales)
    widths, depth = TABLE[form]
    channels = 2 * shape[0] * STEM**2
    stem = ConvNormActivation(shape[0], channels, STEM, padding=0, norm_layer=None, activation_layer=gelu)
    blocks: list[nn.Module] = []
    for out_channels in map(scale, widths):
        first = partial(convolution, depth_multiplier=math.ceil(out_channels / channels)) if widen else convolution
        blocks.append(conv_pool_norm_activation(first, channels, out_channels, None, norm_layer, gelu))
        one_more = partial(convolution, out_channels, out_channels, norm_layer=norm_layer)
        if depth == 2:
            blocks.append(one_more(activation_layer=gelu))
        else:
            layers = sequential(conv1=one_more(activation_layer=gelu), conv2=one_more(activation_layer=None))
            blocks.append(Residual(layers, activation=nn.GELU()))
        channels = out_channels
    return sequential(
        stem=stem,
        blocks=nn.Sequential(*blocks),
        # as airbench has it: the gradient of nn.AdaptiveMaxPool2d has no deterministic form on CUDA
        pool=nn.MaxPool2d(tuple((side - STEM + 1) // 2 ** len(widths) for side in shape[1:])),
        flatten=nn.Flatten(),
        classifier=nn.Linear(channels, classes, bias=False),
    )
