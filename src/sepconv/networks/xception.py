"""Xception: separable convolutions, nothing between their two steps, in residual blocks.

Source: Chollet, arXiv 1610.02357, figure 5.
"""

from torch import nn

from sepconv import InputError
from sepconv.networks.blocks import ConvNormActivation, LayerFactory, Residual, pointwise, sequential
from sepconv.networks.options import Shape, find_column, find_kind, head, make_scale

STEM = ((32, (2, 1)), (64, (1, 1)))  # out_channels, stride (imagenet, small) of each 3 x 3 convolution, unpadded
# out_channels of each separable convolution of a block, its stride (imagenet, small), number of blocks
TABLE = (
    ((128, 128), (2, 1), 1),  # entry flow
    ((256, 256), (2, 2), 1),
    ((728, 728), (2, 2), 1),
    ((728, 728, 728), (1, 1), 8),  # middle flow
    ((728, 1024), (2, 2), 1),  # exit flow
)
EXIT = (1536, 2048)  # out_channels of the separable convolutions after the blocks


def xception(shape: Shape, classes: int, *, width: float, conv: str, form: str) -> nn.Sequential:
    """The network of TABLE: 22,855,952 parameters in its ImageNet form, 3 channels and 1,000 classes.

    Args:
        conv: the kind of each convolution after the stem.

    Raises:
        InputError: images too small for the stem.
    """
    scale, kind, column = make_scale(width), find_kind(conv), find_column(form)
    least = 3 + 2 * STEM[0][1][column]  # leaves the stem's second convolution a map of its kernel's size
    if min(shape[1:]) < least:
        raise InputError(f"images of {shape[1]} x {shape[2]} are too small for this network: {least} x {least} or more")
    channels = shape[0]
    stem, blocks, exit_flow = nn.Sequential(), nn.Sequential(), nn.Sequential()
    for out_channels, strides in STEM:
        stem.append(ConvNormActivation(channels, scale(out_channels), 3, strides[column], padding=0))
        channels = scale(out_channels)
    for row, strides, count in TABLE:
        for _ in range(count):
            blocks.append(residual(channels, [scale(out_channels) for out_channels in row], strides[column], kind.bare))
            channels = scale(row[-1])
    for out_channels in EXIT:
        exit_flow.append(kind.bare(channels, scale(out_channels)))
        channels = scale(out_channels)
    return sequential(stem=stem, blocks=blocks, exit=exit_flow, **head(channels, classes))


def residual(channels: int, row: list[int], stride: int, convolution: LayerFactory) -> Residual:
    """One block: ReLU, convolution and norm for each of `row`, then a strided pooling; the input added to it.

    Where the shape changes, the input goes through a pointwise convolution and a norm. The first block's first ReLU,
    which the figure leaves out, changes nothing: the stem's output is not negative.
    """
    first, last = channels, row[-1]
    layers: dict[str, nn.Module] = {}
    for place, out_channels in enumerate(row, 1):
        layers[f"activation{place}"] = nn.ReLU(inplace=place > 1)  # the first one's input goes to the shortcut too
        layers[f"conv{place}"] = convolution(channels, out_channels, activation_layer=None)
        channels = out_channels
    block = sequential(**layers, pool=nn.MaxPool2d(3, stride, padding=1) if stride > 1 else None)
    same = stride == 1 and first == last
    return Residual(block, None if same else pointwise(first, last, stride, activation_layer=None))
