"""The blocks that networks are made of, all over one conv-norm-activation block.

Feature maps are (B, C, H, W). A standard convolution costs K²·C_in·C_out parameters and H·W times as many
multiply-accumulates (MACs), for an output of H x W; the two steps of a depthwise separable one cost K²·C_in and
C_in·C_out: 1/C_out + 1/K² of that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import _make_divisible
from torchvision.ops import SqueezeExcitation

from sepconv import InputError
from sepconv.config import check

Layer = Callable[..., nn.Module]
Size = int | tuple[int, int]  # along both axes alike, or along height and width


class ConvNormActivation(nn.Sequential):
    """A convolution, then a normalisation, then an activation: (B, in_channels, H, W) to (B, out_channels, H', W').

    torchvision's Conv2dNormActivation, with the same arguments, but for a depthwise convolution that trains fast on
    a CPU too (see DepthwiseConv2d).

    Args:
        padding: in pixels; None keeps H' = ceil(H / stride) for odd kernels.
        norm_layer: None leaves it out, and gives the convolution a bias unless `bias` says otherwise.
        activation_layer: None leaves it out.

    Raises:
        InputError: a size below 1 (padding: below 0), or channels that do not divide into the groups.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | None = None,
        groups: int = 1,
        norm_layer: Layer | None = nn.BatchNorm2d,
        activation_layer: Layer | None = nn.ReLU,
        dilation: Size = 1,
        bias: bool | None = None,
    ) -> None:
        for name, count in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            check(count >= 1, name, count, "1 or more")
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            check(channels % groups == 0, name, channels, f"a multiple of groups={groups}")
        kernel = pair("kernel_size", kernel_size, least=1)
        strides = pair("stride", stride, least=1)
        dilations = pair("dilation", dilation, least=1)
        if padding is None:
            padding = ((kernel[0] - 1) // 2 * dilations[0], (kernel[1] - 1) // 2 * dilations[1])
        paddings = pair("padding", padding, least=0)
        if bias is None:
            bias = norm_layer is None
        conv = DepthwiseConv2d if groups == in_channels > 1 else nn.Conv2d
        layers: list[nn.Module] = [conv(in_channels, out_channels, kernel, strides, paddings, dilations, groups, bias)]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer(inplace=True))
        super().__init__(*layers)


def pair(name: str, value: Size, least: int) -> tuple[int, int]:
    """`value` along height and width. Raises InputError, calling it `name`, for anything below `least`."""
    sizes = value if isinstance(value, tuple) else (value, value)
    whole = len(sizes) == 2 and all(isinstance(size, int) and size >= least for size in sizes)
    check(whole, name, value, f"a whole number, or two as (height, width), of {least} or more")
    return sizes


def keeps_shape(
    in_channels: int, out_channels: int, kernel_size: Size, stride: Size, padding: Size | None = None
) -> bool:
    """Whether a block with these arguments gives feature maps of its input's shape, whatever their size."""
    kernel = pair("kernel_size", kernel_size, least=1)
    paddings = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if padding is None else pair("padding", padding, least=0)
    sides = all(2 * paddings[i] == kernel[i] - 1 for i in range(2))
    return sides and in_channels == out_channels and pair("stride", stride, least=1) == (1, 1)


def depthwise(
    in_channels: int,
    out_channels: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    padding: Size | None = None,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU,
    bias: bool | None = None,
) -> ConvNormActivation:
    """A depthwise convolution: filters that each see one channel, K²·out_channels parameters.

    Args:
        out_channels: in_channels, or a multiple of it: so many filters on each channel (the depth multiplier).
    """
    return ConvNormActivation(
        in_channels, out_channels, kernel_size, stride, padding, in_channels, norm_layer, activation_layer, bias=bias
    )


def pointwise(
    in_channels: int,
    out_channels: int,
    stride: Size = 1,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU,
) -> ConvNormActivation:
    """A 1 x 1 convolution: one dense layer across the channels at every position, in_channels·out_channels weights."""
    return ConvNormActivation(
        in_channels, out_channels, 1, stride, norm_layer=norm_layer, activation_layer=activation_layer
    )


def depthwise_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    padding: Size | None = None,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU,
    between: bool = True,
    depth_multiplier: int = 1,
    residual: bool = False,
) -> nn.Module:
    """A depthwise convolution, one filter per channel, then a pointwise (1 x 1) one that mixes channels.

    (B, in_channels, H, W) to (B, out_channels, H', W'). Source: Howard et al., arXiv 1704.04861, figure 3.

    Args:
        padding: in pixels; None keeps H' = ceil(H / stride) for odd kernels.
        between: normalise and activate between the two steps too, as MobileNet does. Else nothing comes between
            them, and a bias, where there is no norm, only after the second, as in Keras's SeparableConv2D.
        depth_multiplier: filters of the depthwise step on each channel.
        residual: add the input to the output.

    Raises:
        InputError: as ConvNormActivation; a depth multiplier below 1; a residual around a block whose output has
            another shape than its input.
    """
    check(depth_multiplier >= 1, "depth_multiplier", depth_multiplier, "1 or more")
    hidden = in_channels * depth_multiplier
    first = depthwise(
        hidden,
        hidden,
        kernel_size,
        stride,
        padding,
        norm_layer=norm_layer if between else None,
        activation_layer=activation_layer if between else None,
        bias=None if between else False,
    )
    last = pointwise(hidden, out_channels, norm_layer=norm_layer, activation_layer=activation_layer)
    # Copies of the maps one after the other, where one convolution with several filters a channel would interleave its
    # outputs: the pointwise step takes them in any order, and a CPU makes them in half the time, gradients included.
    block = nn.Sequential(*([Repeat(depth_multiplier)] if depth_multiplier > 1 else []), first, last)
    if not residual:
        return block
    if not keeps_shape(in_channels, out_channels, kernel_size, stride, padding):
        raise InputError(
            f"residual=True needs an output of the input's shape, not {in_channels} to {out_channels} channels with "
            f"kernel_size={kernel_size}, stride={stride}, padding={padding}: keep the channels, stride 1 and an odd "
            "kernel padded by half"
        )
    return Residual(block)


def spatially_separable(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU,
    between: bool = True,
) -> nn.Sequential:
    """A K x 1 convolution that keeps the number of channels, then a 1 x K one.

    (B, in_channels, H, W) to (B, out_channels, H', W'). K·in_channels·(in_channels + out_channels) parameters; with
    nothing between and one channel each, the two are one K x K convolution of rank 1. Source: Szegedy et al., arXiv
    1512.00567, section 3.2.

    Args:
        padding: in pixels; None keeps H' = ceil(H / stride) for odd kernels.
        between: normalise and activate between the two steps too; else nothing comes between them, and a bias,
            where there is no norm, only after the second.
    """
    (size, _), (step, _) = pair("kernel_size", kernel_size, least=1), pair("stride", stride, least=1)
    return nn.Sequential(
        ConvNormActivation(
            in_channels,
            in_channels,
            (size, 1),
            (step, 1),
            None if padding is None else (padding, 0),
            norm_layer=norm_layer if between else None,
            activation_layer=activation_layer if between else None,
            bias=None if between else False,
        ),
        ConvNormActivation(
            in_channels,
            out_channels,
            (1, size),
            (1, step),
            None if padding is None else (0, padding),
            norm_layer=norm_layer,
            activation_layer=activation_layer,
        ),
    )


def inverted_residual(
    in_channels: int,
    out_channels: int,
    expanded: int,
    kernel_size: Size = 3,
    stride: Size = 1,
    squeeze: bool = False,
    norm_layer: Layer | None = nn.BatchNorm2d,
    activation_layer: Layer | None = nn.ReLU6,
    step: Layer = depthwise,
) -> nn.Module:
    """A pointwise expansion, a depthwise convolution, a linear pointwise projection; the input added to the output.

    (B, in_channels, H, W) to (B, out_channels, H', W'). It is added where the shape stays: at stride 1, with as many
    channels out as in. Source: Sandler et al., arXiv 1801.04381, table 1; with squeeze-excite Howard et al., arXiv
    1905.02244, figure 4.

    Args:
        expanded: channels between expansion and projection; with in_channels there is no expansion.
        squeeze: weigh the channels by a squeeze-excite, of a quarter of them (Howard et al., section 5.3), before
            the projection.
        step: what stands at the place of the depthwise convolution, from `expanded` to as many channels.
    """
    check(expanded >= 1, "expanded", expanded, "1 or more channels")
    layers: list[nn.Module] = []
    if expanded != in_channels:
        layers.append(pointwise(in_channels, expanded, norm_layer=norm_layer, activation_layer=activation_layer))
    layers.append(
        step(expanded, expanded, kernel_size, stride, norm_layer=norm_layer, activation_layer=activation_layer)
    )
    if squeeze:
        layers.append(SqueezeExcitation(expanded, _make_divisible(expanded // 4, 8), scale_activation=nn.Hardsigmoid))
    layers.append(pointwise(expanded, out_channels, norm_layer=norm_layer, activation_layer=None))
    block = nn.Sequential(*layers)
    return Residual(block) if keeps_shape(in_channels, out_channels, kernel_size, stride) else block


class Residual(nn.Module):
    """`layers` and a shortcut around them, added: layers(x) + shortcut(x).

    Args:
        shortcut: None for the identity.
    """

    def __init__(self, layers: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input) + self.shortcut(input)


class Kind(NamedTuple):
    """The builders of one kind of convolution; all take ConvNormActivation's arguments, in_channels to activation."""

    block: Layer  # its two steps, where it has two, each with norm and activation
    bare: Layer  # nothing between its steps
    step: Layer  # at the place of a depthwise convolution: it keeps the number of channels


KINDS = {
    "separable": Kind(depthwise_separable, partial(depthwise_separable, between=False), depthwise),
    "dense": Kind(ConvNormActivation, ConvNormActivation, ConvNormActivation),
    "spatial": Kind(spatially_separable, partial(spatially_separable, between=False), spatially_separable),
}


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one filter per channel, or as many on each, whose steps do not stall on a CPU.

    On a CPU, oneDNN's data gradient of a strided depthwise convolution is 10 (fp32) to 100 and more (bf16) times
    slower than its forward pass; the gradient of the same convolution at stride 1 is not. So here a strided one
    spreads its output's gradient over the stride-1 output, zeros between, and takes that way back. And two filters a
    channel take it about ten times as long as twice one (a step of (128, 32, 13, 13) in bf16, on 2 cores): so here each
    makes its own maps, which are then interleaved.
    """

    def forward(self, input: Tensor) -> Tensor:
        multiplier, strided = self.out_channels // self.in_channels, max(self.stride) > 1
        own = multiplier > 1 or (strided and torch.is_grad_enabled())
        plain = self.bias is None and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if not (own and plain and input.device.type == "cpu"):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        geometry = (list(self.padding), list(self.dilation), False, [0, 0], self.groups)
        convolve = _StridedDepthwise.apply if strided else one_filter_a_channel
        maps = [convolve(input, weight[i::multiplier], list(self.stride), geometry) for i in range(multiplier)]
        if multiplier == 1:
            return maps[0]
        if input.is_contiguous(memory_format=torch.channels_last):
            return torch.stack([part.permute(0, 2, 3, 1) for part in maps], -1).flatten(3).permute(0, 3, 1, 2)
        return torch.stack(maps, 2).flatten(1, 2)


def one_filter_a_channel(input: Tensor, weight: Tensor, stride: list[int], geometry: tuple[Any, ...]) -> Tensor:
    return torch.ops.aten.convolution(input, weight, None, stride, *geometry)


class _StridedDepthwise(torch.autograd.Function):
    """A strided convolution whose data gradient is computed at stride 1."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: list[int], geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.geometry = stride, geometry
        return one_filter_a_channel(input, weight, stride, geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        input, weight = ctx.saved_tensors
        convolution_backward = torch.ops.aten.convolution_backward
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding, dilation = ctx.geometry[:2]
            sides = [input.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) for i in range(2)]
            spread = grad.new_zeros(grad.shape[0], sides[0], sides[1], grad.shape[1]).permute(0, 3, 1, 2)
            spread[:, :, :: ctx.stride[0], :: ctx.stride[1]] = grad
            grad_input = convolution_backward(spread, input, weight, None, [1, 1], *ctx.geometry, [True, False, False])[
                0
            ]
        if ctx.needs_input_grad[1]:
            grad_weight = convolution_backward(
                grad, input, weight, None, ctx.stride, *ctx.geometry, [False, True, False]
            )[1]
        return grad_input, grad_weight, None, None


def memory_format(maps: Tensor) -> torch.memory_format:
    """How `maps` (B, C, H, W) lie in memory: channels last, or contiguous for all else."""
    last = maps.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class GlobalAvgPool(nn.Module):
    """The mean over all positions: (B, C, H, W) to (B, C, 1, 1).

    As nn.AdaptiveAvgPool2d(1), whose gradient is a view with strides of 0 that a CPU's kernels take long over: 2.5 ms
    with a ReLU's for (128, 128, 7, 7) in bf16 on 2 cores, and 1.7 ms for F.avg_pool2d's, against 0.4 ms for this.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.requires_grad:
            return _GlobalAvgPool.apply(input)
        return F.avg_pool2d(input, input.shape[-2:])


class _GlobalAvgPool(torch.autograd.Function):
    """The mean over all positions, whose gradient is laid out in memory as the input is."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.shape, ctx.format = input.shape, memory_format(input)
        return F.avg_pool2d(input, input.shape[-2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        height, width = ctx.shape[-2:]
        return (grad / (height * width)).expand(ctx.shape).contiguous(memory_format=ctx.format)


class Flatten(nn.Flatten):
    """nn.Flatten: (B, C, H, W) to (B, C·H·W).

    Its gradient is laid out in memory as the input is. Else, for a channels-last map on a CPU, what is before it would
    work on two layouts at once: a ReLU's gradient of (128, 64, 5, 5) in bf16 on 2 cores takes 190 µs, and 30 with this.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and input.requires_grad and input.ndim == 4:
            return _Flatten.apply(input)
        return super().forward(input)


class _Flatten(torch.autograd.Function):
    """A flattening whose gradient is laid out in memory as its input is."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        ctx.shape, ctx.format = input.shape, memory_format(input)
        return input.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return grad.view(ctx.shape).contiguous(memory_format=ctx.format)


class HalvingMaxPool(nn.MaxPool2d):
    """nn.MaxPool2d(2): (B, C, H, W) to (B, C, H // 2, W // 2).

    Where no gradient goes through it, on a CPU, it takes the larger of neighbours along one axis, then the other: for
    (128, 32, 26, 26) in bf16 on 2 cores 0.17 ms, against the 0.40 ms of the kernel that notes their places too.

    Args:
        ceil_mode: round an odd side's half up instead.
    """

    def __init__(self, ceil_mode: bool = False) -> None:
        super().__init__(2, ceil_mode=ceil_mode)

    def forward(self, input: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in input.shape[-2:])
        whole = not self.ceil_mode or (height, width) == input.shape[-2:]
        if input.device.type != "cpu" or (input.requires_grad and torch.is_grad_enabled()) or not whole:
            return super().forward(input)
        rows = torch.maximum(input[..., 0:height:2, :], input[..., 1:height:2, :])
        return torch.maximum(rows[..., 0:width:2], rows[..., 1:width:2])


def pool_norm(channels: int, norm_layer: Layer = nn.BatchNorm2d, ceil_mode: bool = False) -> nn.Sequential:
    """A halving max pooling, then a norm: (B, channels, H, W) to (B, channels, H // 2, W // 2).

    In a norm's place it has the norm and the activation work on a quarter of the positions.

    Args:
        ceil_mode: round an odd side's half up instead.
    """
    return nn.Sequential(HalvingMaxPool(ceil_mode), norm_layer(channels))


class Crop(nn.Module):
    """The first rows and columns of images: (B, C, H, W) to (B, C, height, width)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        return images[..., : self.height, : self.width]

    def extra_repr(self) -> str:
        return f"{self.height}, {self.width}"


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
    """Images (B, C, H, W) to (B, C, side, side), bilinear and antialiased: MobileNet's resolution multiplier."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)

    def extra_repr(self) -> str:
        return str(self.side)
