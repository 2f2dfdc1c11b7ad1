"""The blocks that networks are made of, all over one conv-norm-activation block, with parts that have names.

Feature maps are (B, C, H, W). A standard convolution costs K²·C_in·C_out parameters and H·W times as many
multiply-accumulates (MACs), for an output of H x W; the two steps of a depthwise separable one cost K²·C_in and
C_in·C_out: 1/C_out + 1/K² of that.

Arguments that mean the same everywhere:

- `padding`: in pixels; None keeps H' = ceil(H / stride) for odd kernels
- `norm_layer`, `activation_layer`: None leaves it out
- `bias`: of the last convolution; None gives it one where there is no norm
- `between`: normalise and activate between the two steps too; else nothing comes between them, and the first has no
  bias
- `layers`: ConvNormActivation's `norm_layer` and `activation_layer`, and `bias` where it is not named, handed on
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import _make_divisible
from torchvision.ops import SqueezeExcitation, misc

from sepconv.config.rules import check
from sepconv.networks import fused
from sepconv.networks.cpu import DepthwiseConv2d, HalvingMaxPool

LayerFactory = Callable[..., nn.Module]
Size = int | tuple[int, int]  # along both axes alike, or along height and width

ALONE: dict[str, Any] = {"norm_layer": None, "activation_layer": None, "bias": False}  # a convolution and nothing else


class Sequence(nn.Sequential, fused.Fusible):
    """Parts one after the other, of which chains are computed as one where there are kernels for it."""

    def forward(self, input: Tensor) -> Tensor:
        return run(self, self, input)


def sequential(block: nn.Module | None = None, /, **parts: nn.Module | None) -> nn.Sequential:
    """The parts of `block`, if any, then `parts`, one after the other, each by its name; None leaves a part out.

    Raises TypeError where two parts have one name.
    """
    first = {} if block is None else dict(block.named_children())
    return Sequence(OrderedDict(**first, **{name: part for name, part in parts.items() if part is not None}))


class ConvNormActivation(misc.ConvNormActivation, fused.Fusible):
    """A convolution, then a normalisation, then an activation: (B, in_channels, H, W) to (B, out_channels, H', W').

    torchvision's Conv2dNormActivation, with the same arguments, whose parts are named conv, norm and activation, and
    are computed as one on a CPU: in training by the fused kernels, in evaluation as a convolution of folded weights.

    Raises InputError for a size below 1 (padding: below 0), or channels that do not divide into the groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | None = None,
        groups: int = 1,
        norm_layer: LayerFactory | None = nn.BatchNorm2d,
        activation_layer: LayerFactory | None = nn.ReLU,
        dilation: Size = 1,
        bias: bool | None = None,
    ) -> None:
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            check(count >= 1, name, count, "1 or more")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            check(channels % groups == 0, name, channels, f"a multiple of groups={groups}")
        for name, size in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
            pair(name, size, least=1)
        if padding is not None:
            pair("padding", padding, least=0)
        conv_layer = DepthwiseConv2d if groups == in_channels > 1 else nn.Conv2d
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups, norm_layer, activation_layer,
                         dilation, bias=bias, conv_layer=conv_layer)  # fmt: skip
        layers = {"conv": nn.Conv2d, "norm": norm_layer, "activation": activation_layer}
        self._modules = dict(zip((name for name, layer in layers.items() if layer is not None), self, strict=True))

    def forward(self, input: Tensor) -> Tensor:
        return run(self, self.children(), input)


SEQUENCES = (nn.Sequential, Sequence, ConvNormActivation)  # what calls its parts one after the other, and does no more


def run(
    block: fused.Fusible,
    parts: Iterable[nn.Module],
    input: Tensor,
    shortcut: Callable[[Tensor], Tensor] | None = None,
    activation: nn.Module | None = None,
) -> Tensor:
    """`parts` of `block`, one after the other: what the kernels compute as one, by those.

    Args:
        shortcut: what makes of `input` what is added to the last one's output, before an activation of the sum.
    """
    layers, around = list(parts), input
    if block.find_dtype(input) is not None:
        layers = [layer for part in layers for layer in layers_of(part)]
    while layers:
        dtype = block.find_dtype(input)
        images = not input.requires_grad
        links = [] if dtype is None else fused.find_chain(layers, dtype, images)
        if links:
            layers = layers[sum(link.layers() for link in links) :]
            input = input if links[0].conv is None else input.to(dtype)
            if not layers and shortcut is not None and fused.can_add(links, activation):
                other = shortcut(around).to(input.dtype)
                return fused.chain([*links[:-1], links[-1]._replace(activation=activation)], input, other)
            input = fused.chain(links, input)
        elif dtype is not None and len(layers) > 1 and folds(layers[0], layers[1]):
            input, layers = fold(layers[0], layers[1], input), layers[2:]
        else:
            input, layers = layers[0](input), layers[1:]
    output = input if shortcut is None else input + shortcut(around)
    return output if activation is None else activation(output)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers that a module in training calls one by one, those of the sequences in it too; else the module."""
    if type(module) in SEQUENCES and module.training and not fused.has_hooks(module):
        return [layer for child in module.children() for layer in layers_of(child)]
    return [module]


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a convolution may have the norm after it in its weights: in evaluation, where nobody waits for either."""
    both = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    return both and not (norm.training or torch.is_grad_enabled() or fused.has_hooks(conv) or fused.has_hooks(norm))


def fold(conv: Any, norm: Any, input: Tensor) -> Tensor:
    """`norm(conv(input))`, in evaluation: one convolution, whose weights have the norm in them."""
    weight, bias = torch.nn.utils.fusion.fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return conv._conv_forward(input, weight, bias)


def pair(name: str, value: Size, least: int) -> tuple[int, int]:
    """`value` along height and width. Raises InputError, calling it `name`, for anything below `least`."""
    sizes = value if isinstance(value, tuple) else (value, value)
    whole = len(sizes) == 2 and all(isinstance(size, int) and size >= least for size in sizes)
    check(whole, name, value, f"a whole number, or two as (height, width), of {least} or more")
    return sizes


def depthwise(in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1,
              padding: Size | None = None, **layers: Any) -> ConvNormActivation:  # fmt: skip
    """A depthwise convolution: filters that each see one channel, K²·out_channels parameters.

    Args:
        out_channels: in_channels, or a multiple of it: so many filters on each channel (the depth multiplier).
    """
    return ConvNormActivation(in_channels, out_channels, kernel_size, stride, padding, in_channels, **layers)


def pointwise(in_channels: int, out_channels: int, stride: Size = 1, **layers: Any) -> ConvNormActivation:
    """A 1 x 1 convolution: one dense layer across the channels at every position, in_channels·out_channels weights."""
    return ConvNormActivation(in_channels, out_channels, 1, stride, **layers)


def depthwise_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    padding: Size | None = None,
    bias: bool | None = None,
    between: bool = True,
    depth_multiplier: int = 1,
    **layers: Any,
) -> nn.Sequential:
    """A depthwise convolution, one filter per channel, then a pointwise (1 x 1) one that mixes channels.

    (B, in_channels, H, W) to (B, out_channels, H', W'). `between` as in MobileNet, else as Keras's SeparableConv2D.
    Source: Howard et al., arXiv 1704.04861, figure 3.

    Args:
        depth_multiplier: filters of the depthwise step on each channel.

    Raises:
        InputError: as ConvNormActivation; a depth multiplier below 1.
    """
    check(depth_multiplier >= 1, "depth_multiplier", depth_multiplier, "1 or more")
    hidden = in_channels * depth_multiplier
    return sequential(
        # Copies of the maps one after the other, where one convolution with several filters a channel would interleave
        # its outputs: the pointwise step takes them in any order, and a CPU makes them faster.
        repeat=Repeat(depth_multiplier) if depth_multiplier > 1 else None,
        depthwise=depthwise(hidden, hidden, kernel_size, stride, padding, **(layers if between else ALONE)),
        pointwise=pointwise(hidden, out_channels, bias=bias, **layers),
    )


def spatially_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    padding: Size | None = None,
    bias: bool | None = None,
    between: bool = True,
    **layers: Any,
) -> nn.Sequential:
    """A K x 1 convolution (vertical) that keeps the number of channels, then a 1 x K one (horizontal).

    (B, in_channels, H, W) to (B, out_channels, H', W'). K·in_channels·(in_channels + out_channels) parameters; with
    nothing between and one channel each, the two are one K x K convolution of rank 1. Source: Szegedy et al., arXiv
    1512.00567, section 3.2.
    """
    (height, width), (down, along) = pair("kernel_size", kernel_size, least=1), pair("stride", stride, least=1)
    above, beside = (None, None) if padding is None else pair("padding", padding, least=0)
    column = (height, 1), (down, 1), None if above is None else (above, 0)
    row = (1, width), (1, along), None if beside is None else (0, beside)
    first = layers if between else ALONE
    return sequential(
        vertical=ConvNormActivation(in_channels, in_channels, *column, **first),
        horizontal=ConvNormActivation(in_channels, out_channels, *row, bias=bias, **layers),
    )


def inverted_residual(
    in_channels: int,
    out_channels: int,
    expanded: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    squeeze: bool = False,
    norm_layer: LayerFactory | None = nn.BatchNorm2d,
    activation_layer: LayerFactory | None = nn.ReLU6,
    step: LayerFactory = depthwise,
    depthwise_first: bool = False,
) -> nn.Sequential:
    """A pointwise expansion, a depthwise convolution, a linear pointwise projection; the input added to the output.

    (B, in_channels, H, W) to (B, out_channels, H', W'). It is added where the shape stays: at stride 1, with as many
    channels out as in. Source: Sandler et al., arXiv 1801.04381, table 1; with squeeze-excite Howard et al., arXiv
    1905.02244, figure 4.

    Args:
        expanded: channels between expansion and projection; with in_channels there is no expansion.
        squeeze: weigh the channels by a squeeze-excite, of a quarter of them (Howard et al., section 5.3), before
            the projection.
        step: what stands at the place, and under the name, of the depthwise convolution, from `expanded` to as many
            channels; with `depthwise_first` from in_channels.
        depthwise_first: the depthwise convolution before the expansion, on fewer channels and without activation (Liu
            et al., arXiv 2201.03545, figure 3c; figure 4 has one activation too, but one norm alone).
    """
    check(expanded >= 1, "expanded", expanded, "1 or more channels")
    layers: dict[str, Any] = {"norm_layer": norm_layer, "activation_layer": activation_layer}
    excitation = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)
    if depthwise_first:
        first = sequential(
            depthwise=step(in_channels, in_channels, kernel_size, stride, **layers | {"activation_layer": None}),
            expansion=pointwise(in_channels, expanded, **layers),
        )
    else:
        first = sequential(
            expansion=pointwise(in_channels, expanded, **layers) if expanded != in_channels else None,
            depthwise=step(expanded, expanded, kernel_size, stride, **layers),
        )
    block = sequential(
        first,
        squeeze=excitation(expanded, _make_divisible(expanded // 4, 8)) if squeeze else None,
        projection=pointwise(expanded, out_channels, norm_layer=norm_layer, activation_layer=None),
    )
    odd = all(side % 2 == 1 for side in pair("kernel_size", kernel_size, least=1))  # an even kernel shrinks the map
    same = odd and in_channels == out_channels and pair("stride", stride, least=1) == (1, 1)
    return Residual(block) if same else block


def conv_pool_norm_activation(
    convolution: LayerFactory,
    in_channels: int,
    out_channels: int,
    padding: Size | None = None,
    norm_layer: LayerFactory | None = nn.BatchNorm2d,
    activation_layer: LayerFactory = nn.ReLU,
    ceil_mode: bool = False,
) -> nn.Sequential:
    """A 3 x 3 convolution, a halving max pooling, then norm and activation, both on a quarter of the positions.

    (B, in_channels, H, W) to (B, out_channels, H' // 2, W' // 2).

    Args:
        convolution: makes the convolution, and takes ConvNormActivation's arguments: of a Kind, say.
        ceil_mode: round an odd side's half up instead.
    """
    alone = ALONE | {"bias": norm_layer is None}
    conv = convolution(in_channels, out_channels, padding=padding, **alone)
    return sequential(
        conv,
        pool=HalvingMaxPool(ceil_mode),
        norm=norm_layer and norm_layer(out_channels),
        activation=activation_layer(inplace=True),
    )


class Residual(nn.Sequential, fused.Fusible):
    """The parts of a block one after the other, the output of a shortcut around them added, an activation of the sum.

    Args:
        block: gives its parts, which keep their names.
        shortcut: from the block's input to its output's shape; None for the identity.
    """

    def __init__(
        self, block: nn.Module, shortcut: nn.Module | None = None, activation: nn.Module | None = None
    ) -> None:
        parts = sequential(block, shortcut=nn.Identity() if shortcut is None else shortcut, activation=activation)
        super().__init__(OrderedDict(parts.named_children()))

    def forward(self, input: Tensor) -> Tensor:
        parts = dict(self.named_children())
        own = next(reversed(parts)) == "activation"  # a block's comes before the shortcut
        activation = parts.pop("activation") if own else None
        shortcut = parts.pop("shortcut")
        return run(self, parts.values(), input, shortcut, activation)


class Kind(NamedTuple):
    """The builders of one kind of convolution; all take ConvNormActivation's arguments but groups and dilation."""

    block: LayerFactory  # its two steps, where it has two, each with norm and activation
    bare: LayerFactory  # nothing between its steps
    step: LayerFactory  # at the place of a depthwise convolution: it keeps the number of channels


KINDS = {
    "separable": Kind(depthwise_separable, partial(depthwise_separable, between=False), depthwise),
    "dense": Kind(ConvNormActivation, ConvNormActivation, ConvNormActivation),
    "spatial": Kind(spatially_separable, partial(spatially_separable, between=False), spatially_separable),
}


class Repeat(nn.Module):
    """Maps (B, C, H, W) as many `times` as asked, one after the other: (B, times·C, H, W)."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([maps] * self.times, 1)

    def extra_repr(self) -> str:
        return str(self.times)


class Resize(nn.Module):
    """Images (B, C, H, W) to (B, C, height, width), bilinear and antialiased: MobileNet's resolution multiplier."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.height, self.width), mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        return f"{self.height}, {self.width}"
